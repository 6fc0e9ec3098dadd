#include "server/text/json_file.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/base/json_depth.h"

namespace longhaul {

using nlohmann::json;

absl::StatusOr<std::string> ReadFileCapped(const std::string& path, int64_t max_bytes) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    return absl::NotFoundError(fmt::format("{}: no such file", path));
  }
  if (!std::filesystem::is_regular_file(status)) {
    return absl::InvalidArgumentError(fmt::format("{}: not a regular file", path));
  }
  const uintmax_t n_bytes = std::filesystem::file_size(path, error);
  if (error) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", path, error.message()));
  }
  if (n_bytes > static_cast<uintmax_t>(max_bytes)) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} bytes, at most {} are accepted", path, n_bytes, max_bytes));
  }
  std::ifstream stream(path, std::ios::binary);
  std::string content(n_bytes, '\0');
  if (!stream || (n_bytes > 0 && !stream.read(content.data(), static_cast<int64_t>(n_bytes)))) {
    return absl::InvalidArgumentError(
        fmt::format("{}: cannot be read; check its permissions", path));
  }
  return content;
}

absl::StatusOr<json> ParseJson(const std::string& name, std::string_view text) {
  if (!JsonDepthWithin(text, kMaxJsonDepth)) {
    return absl::InvalidArgumentError(
        fmt::format("{}: nested deeper than {} levels", name, kMaxJsonDepth));
  }
  try {
    return json::parse(text);
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(fmt::format("{}: not valid JSON: {}", name, e.what()));
  }
}

absl::StatusOr<json> ReadJsonFile(const std::string& path) {
  LH_ASSIGN_OR_RETURN(const std::string text, ReadFileCapped(path, kMaxTextFile_bytes));
  LH_ASSIGN_OR_RETURN(json value, ParseJson(path, text));
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the top level is {}, expected an object", path, value.type_name()));
  }
  return value;
}

std::optional<int32_t> AsTokenId(const json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  // A non-negative literal is stored as unsigned, so one comparison covers every value.
  if (!value.is_number_unsigned()) {
    const int64_t id = value.get<int64_t>();
    if (id < 0 || id > std::numeric_limits<int32_t>::max()) return std::nullopt;
    return static_cast<int32_t>(id);
  }
  const uint64_t id = value.get<uint64_t>();
  if (id > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) return std::nullopt;
  return static_cast<int32_t>(id);
}

const json* JsonFields::Find(const char* key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

absl::Status JsonFields::Error(std::string_view key, std::string_view what) const {
  const std::string_view dot = where_.empty() || key.empty() ? "" : ".";
  return absl::InvalidArgumentError(fmt::format("{}: {}{}{}: {}", name_, where_, dot, key, what));
}

JsonFields JsonFields::Child(const char* key, const json* object) const {
  return JsonFields(name_, where_.empty() ? key : fmt::format("{}.{}", where_, key), object);
}

absl::StatusOr<std::optional<bool>> JsonFields::Bool(const char* key) const {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    return Error(key, fmt::format("is {}, expected true or false", value->type_name()));
  }
  return value->get<bool>();
}

absl::StatusOr<std::optional<std::string>> JsonFields::String(const char* key) const {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    return Error(key, fmt::format("is {}, expected a string", value->type_name()));
  }
  return value->get<std::string>();
}

absl::StatusOr<std::optional<int32_t>> JsonFields::TokenId(const char* key) const {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<int32_t> id = AsTokenId(*value);
  if (!id) return Error(key, "is not a token id (an integer from 0 to 2147483647)");
  return id;
}

absl::StatusOr<const json*> JsonFields::Array(const char* key) const {
  const json* value = Find(key);
  if (value != nullptr && !value->is_array()) {
    return Error(key, fmt::format("is {}, expected an array", value->type_name()));
  }
  return value;
}

absl::StatusOr<const json*> JsonFields::Object(const char* key) const {
  const json* value = Find(key);
  if (value != nullptr && !value->is_object()) {
    return Error(key, fmt::format("is {}, expected an object", value->type_name()));
  }
  return value;
}

}  // namespace longhaul
