// JsonFields: typed reading of one JSON object from outside. Every reader checks type and range,
// says what is wrong in a text that names the field, and keeps the first error; later calls do
// nothing then. Absent and null are the same. Lives on the stack of a parser.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul::api {

// Parses text that must be one JSON object, nested at most 64 deep (checked before anything is
// built).
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text);

class JsonFields {
 public:
  // `object` must be a JSON object and outlive this. `prefix` ("sparse.") stands before names in
  // errors.
  explicit JsonFields(const nlohmann::json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }

  // The field, or nullptr when it is absent or null, or after an error.
  const nlohmann::json* Get(const char* name) const;

  // True when the field was there and of the right type; else *out keeps its value.
  bool String(const char* name, std::string* out);
  bool Bool(const char* name, bool* out);
  bool Int(const char* name, int64_t min, int64_t max, int64_t* out);
  bool Int32(const char* name, int32_t* out);
  bool Float(const char* name, float* out);
  bool Double(const char* name, double* out);
  // Integers in an array of at most max_size.
  bool Ids(const char* name, size_t max_size, std::vector<int32_t>* out);
  // A string or an array of at most max_size strings.
  bool Strings(const char* name, size_t max_size, std::vector<std::string>* out);
  // The object under `name`.
  const nlohmann::json* Object(const char* name);

  // An error when the field is there and means something: not null, false, empty, or `harmless`.
  void Refuse(const char* name, const nlohmann::json& harmless = nullptr);

  void Fail(const std::string& name, const std::string& message);
  void Adopt(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

 private:
  const nlohmann::json& object_;
  std::string prefix_;
  absl::Status status_;
};

// What kind of value this is, for error texts: "a string", "an object", ...
std::string JsonTypeName(const nlohmann::json& value);
// An integer, also written as 16.0; nullopt when it is none or does not fit.
std::optional<int64_t> ToInt64(const nlohmann::json& value);

}  // namespace longhaul::api
