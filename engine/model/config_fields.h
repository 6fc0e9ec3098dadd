// Fields: typed, range-checked access to the fields of one JSON object of a model's config.json.
// The first error sticks; later reads return defaults, so that a parser reads like the list of its
// fields and checks once. Borrows the object; used while a model loads, from one thread. Included
// by the parsers of engine/model only: it brings the JSON library along.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul {

class Fields {
 public:
  using Json = nlohmann::json;

  // `where` starts every error: the file, and the section where there is one.
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const absl::Status& status() const { return status_; }
  const std::string& where() const { return where_; }

  // The value, or null where it is absent or JSON null (Hugging Face writes both).
  const Json* Find(const char* name) const;

  // In [low, high]; without a fallback the field must be there.
  int64_t Int(const char* name, int64_t low, int64_t high);
  int64_t Int(const char* name, int64_t low, int64_t high, int64_t fallback);
  // In (low, high].
  double Number(const char* name, double low, double high);
  double Number(const char* name, double low, double high, double fallback);
  // Exactly n numbers in (low, high]; must be there.
  std::vector<double> Numbers(const char* name, int64_t n, double low, double high);
  bool Bool(const char* name, bool fallback);
  std::string String(const char* name, const std::string& fallback);

  void Fail(const std::string& text);               // InvalidArgument
  void FailUnimplemented(const std::string& text);  // Unimplemented
  // Takes over the first error of a section.
  void Adopt(const absl::Status& status);

  // A value as text for an error message, cut when long. Never throws on invalid UTF-8.
  static std::string Show(const Json& value);

 private:
  void FailMissing(const char* name);

  const Json& object_;
  const std::string where_;
  absl::Status status_;
};

}  // namespace longhaul
