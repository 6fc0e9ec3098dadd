#include "server/eval/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <variant>

namespace longhaul::eval {
namespace {

struct Key {
  const char* name;
  std::variant<float SparseOptions::*, int64_t SparseOptions::*> field;
};

constexpr Key kKeys[] = {
    {"alpha", &SparseOptions::alpha},
    {"window", &SparseOptions::window},
    {"sink", &SparseOptions::sink},
    {"stripe_width", &SparseOptions::stripe_width},
    {"rows", &SparseOptions::sampled_rows},
    {"tail_rows", &SparseOptions::tail_rows},
    {"audit_rows", &SparseOptions::audit_rows},
    {"keep_max", &SparseOptions::keep_max},
    {"recall_floor", &SparseOptions::recall_floor},
    {"columns", &SparseOptions::columns},
    {"diagonals", &SparseOptions::diagonals},
};

constexpr double kLargestValue = 1e9;  // any further check is SparseOptions::Validate

absl::Status Wrong(const std::string& policy, const std::string& what) {
  return absl::InvalidArgumentError(fmt::format("policy '{}': {}", policy, what));
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

absl::Status Set(const Policy& policy, const Key& key, double value, SparseOptions* options) {
  if (const auto* field = std::get_if<float SparseOptions::*>(&key.field)) {
    options->** field = static_cast<float>(value);
    return absl::OkStatus();
  }
  if (value != std::floor(value)) {
    return Wrong(policy.name, fmt::format("{} is {}, it must be a whole number", key.name, value));
  }
  options->*std::get<int64_t SparseOptions::*>(key.field) = static_cast<int64_t>(value);
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> PolicyKeys() {
  std::vector<std::string> names;
  for (const Key& key : kKeys) names.emplace_back(key.name);
  return names;
}

absl::StatusOr<Policy> ParsePolicy(const std::string& text) {
  const std::vector<std::string> parts = Split(text, ':');
  Policy policy{.name = text, .mode = parts[0], .values = {}};
  if (policy.mode == "default") {
    if (parts.size() == 1) return policy;
    return Wrong(text, "default takes no values");
  }
  if (const auto mode = ParseSparseMode(policy.mode); !mode.ok()) {
    return Wrong(text, std::string(mode.status().message()));
  }
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    const std::string name = parts[i].substr(0, equals);
    const std::vector<std::string> known = PolicyKeys();
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      return Wrong(text, fmt::format("'{}' is unknown; use {}", name, fmt::join(known, ", ")));
    }
    for (const auto& [earlier, value] : policy.values) {
      if (earlier == name) return Wrong(text, fmt::format("{} is given twice", name));
    }
    const std::string number = equals == std::string::npos ? "" : parts[i].substr(equals + 1);
    double value = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    const bool whole = error == std::errc() && end == number.data() + number.size();
    if (!whole || !(std::abs(value) <= kLargestValue)) {
      return Wrong(text, fmt::format("{} is '{}', it must be a number", name, number));
    }
    policy.values.emplace_back(name, value);
  }
  // Out of range whatever the base is: said before anything is loaded.
  LH_RETURN_IF_ERROR(ResolvePolicy(policy, SparseOptions()).status());
  return policy;
}

absl::StatusOr<SparseOptions> ResolvePolicy(const Policy& policy, const SparseOptions& base) {
  SparseOptions options = base;
  if (policy.mode == "default") return options;
  LH_ASSIGN_OR_RETURN(options.mode, ParseSparseMode(policy.mode));
  for (const auto& [name, value] : policy.values) {
    const auto* key = std::find_if(std::begin(kKeys), std::end(kKeys),
                                   [&name = name](const Key& k) { return k.name == name; });
    LH_RETURN_IF_ERROR(Set(policy, *key, value, &options));
  }
  if (const absl::Status status = options.Validate(); !status.ok()) {
    return Wrong(policy.name, std::string(status.message()));
  }
  return options;
}

}  // namespace longhaul::eval
