// Reading of JSON files that somebody else wrote: capped size and nesting, and field access whose
// errors name the file and the field. Stateless; any thread.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/base/status.h"

namespace longhaul {

constexpr int64_t kMaxTextFile_bytes = int64_t{256} << 20;
constexpr int kMaxJsonDepth = 64;

// Whole content of a file. NotFound, or InvalidArgument when it is not a regular file or too large.
absl::StatusOr<std::string> ReadFileCapped(const std::string& path, int64_t max_bytes);

// `text` as JSON; errors begin with `name`, the file they are about.
absl::StatusOr<nlohmann::json> ParseJson(const std::string& name, std::string_view text);
// The file as JSON; its top level must be an object.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path);

// Members of a JSON object. `name` is the file, `where` the path of the object in it. A missing
// member or null gives nullopt (pointer: nullptr); another type is InvalidArgument.
class JsonFields {
 public:
  JsonFields(std::string name, std::string where, const nlohmann::json* object)
      : name_(std::move(name)), where_(std::move(where)), object_(object) {}

  const nlohmann::json* Find(const char* key) const;  // nullptr when missing or null
  absl::StatusOr<std::optional<bool>> Bool(const char* key) const;
  absl::StatusOr<std::optional<std::string>> String(const char* key) const;
  absl::StatusOr<std::optional<int32_t>> TokenId(const char* key) const;  // 0 .. 2^31-1
  // nullptr when missing; InvalidArgument when it is there but not an array (object).
  absl::StatusOr<const nlohmann::json*> Array(const char* key) const;
  absl::StatusOr<const nlohmann::json*> Object(const char* key) const;

  // "tokenizer.json: model.vocab: <what>"
  absl::Status Error(std::string_view key, std::string_view what) const;
  JsonFields Child(const char* key, const nlohmann::json* object) const;

 private:
  std::string name_;
  std::string where_;  // empty at the top
  const nlohmann::json* object_;
};

// Token id out of a JSON number, or nullopt.
std::optional<int32_t> AsTokenId(const nlohmann::json& value);

}  // namespace longhaul
