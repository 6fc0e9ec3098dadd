#include "server/text/tokenizer.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <filesystem>

#include "server/text/detokenizer.h"
#include "server/text/hf_tokenizer.h"
#include "server/text/json_file.h"
#include "server/text/sentencepiece_tokenizer.h"

namespace longhaul {
namespace {

// Offsets inside a text are 32 bits, and a sentencepiece word mark is three times as
// long as its space.
constexpr size_t kMaxTextBytes = size_t{512} << 20;

bool FileExists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadHf(const std::string& path,
                                                  const SpecialConfig& config, int n_threads) {
  LH_ASSIGN_OR_RETURN(const std::string text, ReadFileCapped(path, kMaxTextFile_bytes));
  LH_ASSIGN_OR_RETURN(HfTokenizerSpec spec, ReadHfTokenizer(path, text, config));
  return std::unique_ptr<Tokenizer>(std::make_unique<HfTokenizer>(std::move(spec), n_threads));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(const std::string& path,
                                                             const SpecialConfig& config,
                                                             int n_threads) {
  LH_ASSIGN_OR_RETURN(const std::string bytes, ReadFileCapped(path, kMaxTextFile_bytes));
  LH_ASSIGN_OR_RETURN(auto tokenizer,
                      SentencePieceTokenizer::Create(path, bytes, config, n_threads));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace

absl::Status Tokenizer::CheckText(std::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(fmt::format(
        "a text of {} bytes, at most {} can be tokenized at once", text.size(), kMaxTextBytes));
  }
  if (const size_t at = FindInvalidUtf8(text); at != std::string_view::npos) {
    return absl::InvalidArgumentError(
        fmt::format("the text is not valid UTF-8 at byte {}; send UTF-8", at));
  }
  return absl::OkStatus();
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids) const {
  std::string bytes;
  for (const int32_t id : ids) bytes.append(TokenBytes(id));
  std::string_view text = bytes;
  if (drops_first_space() && text.starts_with(' ')) text.remove_prefix(1);
  return SanitizeUtf8(text);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_dir,
                                                         int n_threads) {
  const std::string hf_path = model_dir + "/tokenizer.json";
  const std::string spm_path = model_dir + "/tokenizer.model";
  if (!FileExists(hf_path) && !FileExists(spm_path)) {
    return absl::NotFoundError(
        fmt::format("{}: neither tokenizer.json nor tokenizer.model is there; --model must name a "
                    "Hugging Face style folder",
                    model_dir));
  }
  LH_ASSIGN_OR_RETURN(const SpecialConfig config, ReadSpecialConfig(model_dir));
  if (!FileExists(hf_path)) return LoadSentencePiece(spm_path, config, n_threads);
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadHf(hf_path, config, n_threads);
  if (!absl::IsUnimplemented(tokenizer.status()) || !FileExists(spm_path)) return tokenizer;
  spdlog::warn("{}; using tokenizer.model instead", std::string(tokenizer.status().message()));
  return LoadSentencePiece(spm_path, config, n_threads);
}

}  // namespace longhaul
