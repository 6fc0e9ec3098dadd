#include "server/eval/files.h"

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "server/text/detokenizer.h"

namespace longhaul::eval {
namespace {

constexpr int64_t kMaxTextBytes = int64_t{64} << 20;

}  // namespace

absl::StatusOr<std::string> ReadText(const std::string& flag, const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} is a folder; name a text file", flag, path));
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(fmt::format("{}: cannot open {}", flag, path));
  const auto n_bytes = static_cast<int64_t>(file.tellg());
  if (n_bytes < 0 || n_bytes > kMaxTextBytes) {
    return absl::InvalidArgumentError(fmt::format("{}: {} has {} bytes; give a text of at most {}",
                                                  flag, path, n_bytes, kMaxTextBytes));
  }
  std::string text(static_cast<size_t>(n_bytes), '\0');
  file.seekg(0);
  if (!file.read(text.data(), n_bytes)) {
    return absl::UnavailableError(fmt::format("{}: cannot read {}", flag, path));
  }
  const size_t invalid = FindInvalidUtf8(text);
  if (invalid == std::string::npos) return text;
  return absl::InvalidArgumentError(fmt::format(
      "{}: {} is not UTF-8 at byte {}; convert it, for example with iconv -f latin1 -t utf-8", flag,
      path, invalid));
}

absl::Status CheckWritable(const std::string& flag, const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  std::error_code error;
  const bool existed = std::filesystem::exists(path, error);
  const bool writable = static_cast<bool>(std::ofstream(path, std::ios::app));
  if (writable && !existed) std::filesystem::remove(path, error);
  if (writable) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}: cannot write {}", flag, path));
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (file) return absl::OkStatus();
  return absl::UnavailableError(fmt::format("cannot write {}", path));
}

}  // namespace longhaul::eval
