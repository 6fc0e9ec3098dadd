#include "engine/model/config_fields.h"

#include <fmt/format.h>

namespace longhaul {

const Fields::Json* Fields::Find(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

int64_t Fields::Int(const char* name, int64_t low, int64_t high) {
  if (Find(name) == nullptr) FailMissing(name);
  return Int(name, low, high, low);
}

int64_t Fields::Int(const char* name, int64_t low, int64_t high, int64_t fallback) {
  const Json* value = Find(name);
  if (value == nullptr) return fallback;
  const bool fits = value->is_number_unsigned()
                        ? value->get<uint64_t>() <= static_cast<uint64_t>(high)
                        : value->is_number_integer();
  if (fits && value->get<int64_t>() >= low && value->get<int64_t>() <= high) {
    return value->get<int64_t>();
  }
  Fail(fmt::format("'{}' is {}, it must be an integer in [{}, {}]", name, Show(*value), low, high));
  return fallback;
}

double Fields::Number(const char* name, double low, double high) {
  if (Find(name) == nullptr) FailMissing(name);
  return Number(name, low, high, high);
}

double Fields::Number(const char* name, double low, double high, double fallback) {
  const Json* value = Find(name);
  if (value == nullptr) return fallback;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number > low && number <= high) return number;
  }
  Fail(fmt::format("'{}' is {}, it must be a number above {} and at most {}", name, Show(*value),
                   low, high));
  return fallback;
}

std::vector<double> Fields::Numbers(const char* name, int64_t n, double low, double high) {
  std::vector<double> numbers(n, high);
  const Json* value = Find(name);
  if (value == nullptr) {
    FailMissing(name);
    return numbers;
  }
  if (!value->is_array() || static_cast<int64_t>(value->size()) != n) {
    Fail(fmt::format("'{}' must be a list of {} numbers", name, n));
    return numbers;
  }
  for (int64_t i = 0; i < n; ++i) {
    const Json& element = (*value)[i];
    if (element.is_number()) numbers[i] = element.get<double>();
    if (!element.is_number() || !(numbers[i] > low && numbers[i] <= high)) {
      Fail(fmt::format("'{}' holds {} at index {}, it must be a number above {} and at most {}",
                       name, Show(element), i, low, high));
    }
  }
  return numbers;
}

bool Fields::Bool(const char* name, bool fallback) {
  const Json* value = Find(name);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  Fail(fmt::format("'{}' is {}, it must be true or false", name, Show(*value)));
  return fallback;
}

std::string Fields::String(const char* name, const std::string& fallback) {
  const Json* value = Find(name);
  if (value == nullptr) return fallback;
  if (value->is_string()) return value->get<std::string>();
  Fail(fmt::format("'{}' is {}, it must be a string", name, Show(*value)));
  return fallback;
}

void Fields::Fail(const std::string& text) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(fmt::format("{}: {}", where_, text));
}

void Fields::FailUnimplemented(const std::string& text) {
  if (status_.ok()) status_ = absl::UnimplementedError(fmt::format("{}: {}", where_, text));
}

void Fields::Adopt(const absl::Status& status) {
  if (status_.ok()) status_ = status;
}

void Fields::FailMissing(const char* name) { Fail(fmt::format("field '{}' is missing", name)); }

std::string Fields::Show(const Json& value) {
  std::string text = value.is_structured()
                         ? std::string(value.type_name())
                         : value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 64) text = text.substr(0, 61) + "...";
  return text;
}

}  // namespace longhaul
