#include "server/api/json_fields.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "kernels/base/json_depth.h"
#include "server/api/status_map.h"

namespace longhaul::api {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;

}  // namespace

absl::StatusOr<json> ParseJsonObject(std::string_view text) {
  if (!JsonDepthWithin(text, kMaxDepth)) {
    return absl::InvalidArgumentError(
        fmt::format("the request body is nested deeper than {} levels", kMaxDepth));
  }
  json value = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) {
    return absl::InvalidArgumentError(
        "the request body is not valid JSON (or not valid UTF-8); check quoting, commas and "
        "numbers");
  }
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        fmt::format("the request body must be a JSON object, got {}", JsonTypeName(value)));
  }
  return value;
}

std::string JsonTypeName(const json& value) {
  switch (value.type()) {
    case json::value_t::null:
      return "null";
    case json::value_t::object:
      return "an object";
    case json::value_t::array:
      return "an array";
    case json::value_t::string:
      return "a string";
    case json::value_t::boolean:
      return "a boolean";
    default:
      return value.is_number_float() ? "a number" : "an integer";
  }
}

std::optional<int64_t> ToInt64(const json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number > uint64_t{std::numeric_limits<int64_t>::max()}) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::abs(number) < 0x1p53 && number == std::floor(number)) {
      return static_cast<int64_t>(number);
    }
  }
  return std::nullopt;
}

const json* JsonFields::Get(const char* name) const {
  if (!status_.ok()) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void JsonFields::Fail(const std::string& name, const std::string& message) {
  if (!status_.ok()) return;
  const std::string param = prefix_ + name;
  status_ = InvalidParam(param, fmt::format("'{}' {}", param, message));
}

bool JsonFields::String(const char* name, std::string* out) {
  const json* value = Get(name);
  if (value == nullptr) return false;
  if (!value->is_string()) {
    Fail(name, fmt::format("must be a string, got {}", JsonTypeName(*value)));
    return false;
  }
  *out = value->get_ref<const std::string&>();
  return true;
}

bool JsonFields::Bool(const char* name, bool* out) {
  const json* value = Get(name);
  if (value == nullptr) return false;
  if (!value->is_boolean()) {
    Fail(name, fmt::format("must be true or false, got {}", JsonTypeName(*value)));
    return false;
  }
  *out = value->get<bool>();
  return true;
}

bool JsonFields::Int(const char* name, int64_t min, int64_t max, int64_t* out) {
  const json* value = Get(name);
  if (value == nullptr) return false;
  if (!value->is_number()) {
    Fail(name, fmt::format("must be an integer, got {}", JsonTypeName(*value)));
    return false;
  }
  const std::optional<int64_t> number = ToInt64(*value);
  if (!number || *number < min || *number > max) {
    Fail(name, fmt::format("must be an integer from {} to {}, got {}", min, max, value->dump()));
    return false;
  }
  *out = *number;
  return true;
}

bool JsonFields::Int32(const char* name, int32_t* out) {
  int64_t number = 0;
  if (!Int(name, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max(),
           &number)) {
    return false;
  }
  *out = static_cast<int32_t>(number);
  return true;
}

bool JsonFields::Double(const char* name, double* out) {
  const json* value = Get(name);
  if (value == nullptr) return false;
  if (!value->is_number()) {
    Fail(name, fmt::format("must be a number, got {}", JsonTypeName(*value)));
    return false;
  }
  const double number = value->get<double>();
  if (!(std::abs(number) <= std::numeric_limits<float>::max())) {
    Fail(name, fmt::format("must be a finite number, got {}", value->dump()));
    return false;
  }
  *out = number;
  return true;
}

bool JsonFields::Float(const char* name, float* out) {
  double number = 0;
  if (!Double(name, &number)) return false;
  *out = static_cast<float>(number);
  return true;
}

bool JsonFields::Ids(const char* name, size_t max_size, std::vector<int32_t>* out) {
  const json* value = Get(name);
  if (value == nullptr) return false;
  if (!value->is_array()) {
    Fail(name, fmt::format("must be an array of token ids, got {}", JsonTypeName(*value)));
    return false;
  }
  if (value->size() > max_size) {
    Fail(name, fmt::format("may hold at most {} token ids, got {}", max_size, value->size()));
    return false;
  }
  out->clear();
  out->reserve(value->size());
  for (const json& element : *value) {
    const std::optional<int64_t> id = element.is_number() ? ToInt64(element) : std::nullopt;
    if (!id || *id < 0 || *id > std::numeric_limits<int32_t>::max()) {
      const std::string shown = element.is_number() ? element.dump() : JsonTypeName(element);
      Fail(name, fmt::format("must hold token ids (integers from 0), got {} at position {}", shown,
                             out->size()));
      return false;
    }
    out->push_back(static_cast<int32_t>(*id));
  }
  return true;
}

bool JsonFields::Strings(const char* name, size_t max_size, std::vector<std::string>* out) {
  const json* value = Get(name);
  if (value == nullptr) return false;
  out->clear();
  if (value->is_string()) {
    out->push_back(value->get_ref<const std::string&>());
    return true;
  }
  if (!value->is_array()) {
    Fail(name,
         fmt::format("must be a string or an array of strings, got {}", JsonTypeName(*value)));
    return false;
  }
  if (value->size() > max_size) {
    Fail(name, fmt::format("may hold at most {} strings, got {}", max_size, value->size()));
    return false;
  }
  for (const json& element : *value) {
    if (!element.is_string()) {
      Fail(name, fmt::format("must hold strings, got {}", JsonTypeName(element)));
      return false;
    }
    out->push_back(element.get_ref<const std::string&>());
  }
  return true;
}

const json* JsonFields::Object(const char* name) {
  const json* value = Get(name);
  if (value == nullptr || value->is_object()) return value;
  Fail(name, fmt::format("must be an object, got {}", JsonTypeName(*value)));
  return nullptr;
}

void JsonFields::Refuse(const char* name, const json& harmless) {
  const json* value = Get(name);
  if (value == nullptr || *value == harmless || *value == json(false)) return;
  if ((value->is_array() || value->is_object() || value->is_string()) && value->size() == 0) return;
  if (value->is_string() && value->get_ref<const std::string&>().empty()) return;
  Fail(name, "is not supported by this server; leave it out");
}

}  // namespace longhaul::api
