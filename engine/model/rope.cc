#include "engine/model/rope.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>
#include <utility>

#include "kernels/base/check.h"

namespace longhaul {
namespace {

constexpr double kMaxTheta = 1e30;
constexpr double kMaxFactor = 1e6;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

constexpr std::pair<std::string_view, RopeKind> kKindNames[] = {
    {"default", RopeKind::kDefault},   {"linear", RopeKind::kLinear},
    {"dynamic", RopeKind::kDynamic},   {"yarn", RopeKind::kYarn},
    {"longrope", RopeKind::kLongRope}, {"su", RopeKind::kLongRope},  // its first name
    {"llama3", RopeKind::kLlama3},
};

RopeKind ParseKind(Fields& fields, const std::string& name) {
  std::string supported;
  for (const auto& [known, kind] : kKindNames) {
    if (name == known) return kind;
    supported += (supported.empty() ? "" : ", ") + std::string(known);
  }
  fields.FailUnimplemented(
      fmt::format("rope type '{}' is not supported; supported are {}", name, supported));
  return RopeKind::kDefault;
}

// The share of softmax sharpening that YaRN gives back (arXiv 2309.00071, section 3.4).
double YarnMscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

void ParseYarn(Fields& fields, RopeConfig& rope) {
  rope.beta_fast = fields.Number("beta_fast", 0, kMaxFactor, rope.beta_fast);
  rope.beta_slow = fields.Number("beta_slow", 0, kMaxFactor, rope.beta_slow);
  rope.truncate = fields.Bool("truncate", rope.truncate);
  if (rope.beta_slow > rope.beta_fast) fields.Fail("'beta_slow' must not exceed 'beta_fast'");
  double factor = YarnMscale(rope.factor, 1.0);
  if (fields.Find("mscale") != nullptr && fields.Find("mscale_all_dim") != nullptr) {
    factor = YarnMscale(rope.factor, fields.Number("mscale", 0, kMaxFactor)) /
             YarnMscale(rope.factor, fields.Number("mscale_all_dim", 0, kMaxFactor));
  }
  rope.attention_factor = fields.Number("attention_factor", 0, kMaxFactor, factor);
}

void ParseLongRope(Fields& fields, int64_t max_positions, RopeConfig& rope) {
  rope.short_factors = fields.Numbers("short_factor", rope.n_pairs, 0, kMaxFactor);
  rope.long_factors = fields.Numbers("long_factor", rope.n_pairs, 0, kMaxFactor);
  const double original = static_cast<double>(rope.original_positions);
  rope.factor =
      fields.Number("factor", 0, kMaxFactor, static_cast<double>(max_positions) / original);
  const double factor = rope.factor <= 1 || rope.original_positions <= 1
                            ? 1.0
                            : std::sqrt(1 + std::log(rope.factor) / std::log(original));
  rope.attention_factor = fields.Number("attention_factor", 0, kMaxFactor, factor);
}

void ParseLlama3(Fields& fields, RopeConfig& rope) {
  rope.low_freq_factor = fields.Number("low_freq_factor", 0.0, kMaxFactor, 1.0);
  rope.high_freq_factor = fields.Number("high_freq_factor", 0.0, kMaxFactor, 4.0);
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    fields.Fail("'high_freq_factor' must be above 'low_freq_factor'");
  }
}

// The context before the scaling. Phi-3 writes it beside the section, not into it.
int64_t OriginalPositions(Fields& top, Fields& fields, int64_t max_positions) {
  constexpr char kName[] = "original_max_position_embeddings";
  return fields.Int(kName, 1, kMaxPositions, top.Int(kName, 1, kMaxPositions, max_positions));
}

void ParseScaling(Fields& top, Fields& fields, const RopeDefaults& defaults, RopeConfig& rope) {
  if (rope.kind == RopeKind::kDefault) return;
  if (rope.kind != RopeKind::kLinear) {
    rope.original_positions = OriginalPositions(top, fields, defaults.max_positions);
  }
  if (rope.kind == RopeKind::kLongRope) {
    ParseLongRope(fields, defaults.max_positions, rope);
    return;
  }
  rope.factor = fields.Number("factor", 0.0, kMaxFactor);
  if (rope.kind == RopeKind::kYarn) ParseYarn(fields, rope);
  if (rope.kind == RopeKind::kLlama3) ParseLlama3(fields, rope);
  // The formula counts from the checkpoint's own context, whatever else the section says.
  if (rope.kind == RopeKind::kDynamic) rope.original_positions = defaults.max_positions;
}

// Pair number, as a real, that turns `turns` times within the original context.
double PairOfTurns(const RopeConfig& rope, double turns) {
  const double waves =
      static_cast<double>(rope.original_positions) / (turns * 2 * std::numbers::pi);
  return static_cast<double>(rope.n_pairs) * std::log(waves) / std::log(rope.theta);
}

// Share of the undivided frequency that each pair keeps.
std::vector<double> YarnKeep(const RopeConfig& rope) {
  double low = PairOfTurns(rope, rope.beta_fast);
  double high = PairOfTurns(rope, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(2 * rope.n_pairs - 1));
  if (low == high) high += 0.001;
  std::vector<double> keep(rope.n_pairs);
  for (int64_t i = 0; i < rope.n_pairs; ++i) {
    keep[i] = 1 - std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
  }
  return keep;
}

// Base that stretches the slowest pair to the context served, leaving the fastest alone.
double DynamicTheta(const RopeConfig& rope) {
  const int64_t tokens = std::max(rope.context_tokens, rope.original_positions);
  const double stretch = static_cast<double>(tokens) / static_cast<double>(rope.original_positions);
  const double dim = static_cast<double>(2 * rope.n_pairs);
  return rope.theta * std::pow(rope.factor * stretch - (rope.factor - 1), dim / (dim - 2));
}

}  // namespace

RopeConfig ParseRope(Fields& top, const RopeDefaults& defaults) {
  const bool newer = top.Find("rope_parameters") != nullptr;
  const char* section = newer ? "rope_parameters" : "rope_scaling";
  const Fields::Json nothing = Fields::Json::object();
  const Fields::Json* object = top.Find(section);
  if (object != nullptr && !object->is_object()) {
    top.Fail(
        fmt::format("'{}' is {}, it must be an object or null", section, Fields::Show(*object)));
    object = nullptr;
  }
  Fields fields(object == nullptr ? nothing : *object, fmt::format("{}: {}", top.where(), section));

  RopeConfig rope;
  rope.theta = fields.Number("rope_theta", 0.0, kMaxTheta,
                             top.Number("rope_theta", 0.0, kMaxTheta, defaults.theta));
  const double partial =
      fields.Number("partial_rotary_factor", 0.0, 1.0,
                    top.Number("partial_rotary_factor", 0.0, 1.0, defaults.partial_factor));
  const auto rotary_dim = static_cast<int64_t>(static_cast<double>(defaults.head_dim) * partial);
  if (rotary_dim < 2 || rotary_dim % 2 != 0) {
    top.Fail(
        fmt::format("rotary embeddings of {} of the {} elements of a head (head_dim times "
                    "partial_rotary_factor {}): an even number of 2 or more is needed",
                    rotary_dim, defaults.head_dim, partial));
    return rope;
  }
  rope.n_pairs = rotary_dim / 2;
  rope.context_tokens = defaults.max_positions;
  if (object != nullptr) {
    std::string name = fields.String("rope_type", fields.String("type", newer ? "default" : ""));
    if (defaults.yarn_is_longrope && name == "yarn") name = "longrope";
    rope.kind = ParseKind(fields, name);
    ParseScaling(top, fields, defaults, rope);
  }
  if (rope.kind == RopeKind::kDynamic && rope.n_pairs < 2) {
    fields.Fail("rope type 'dynamic' needs at least 4 rotated elements of a head");
  }
  if (rope.kind == RopeKind::kYarn && rope.theta <= 1) {
    fields.Fail(fmt::format("rope type 'yarn' needs a 'rope_theta' above 1, it is {}", rope.theta));
  }
  top.Adopt(fields.status());
  return rope;
}

std::vector<double> InverseFrequencies(const RopeConfig& rope) {
  LH_CHECK(rope.n_pairs > 0 && rope.context_tokens > 0);
  const int64_t n = rope.n_pairs;
  const double theta = rope.kind == RopeKind::kDynamic ? DynamicTheta(rope) : rope.theta;
  std::vector<double> base(n);
  for (int64_t i = 0; i < n; ++i) {
    base[i] = std::pow(theta, -static_cast<double>(i) / static_cast<double>(n));
  }
  std::vector<double> keep(n, 1.0);  // the rest is divided by the factor
  switch (rope.kind) {
    case RopeKind::kDefault:
    case RopeKind::kDynamic:
      break;
    case RopeKind::kLinear:
      std::fill(keep.begin(), keep.end(), 0.0);
      break;
    case RopeKind::kYarn:
      keep = YarnKeep(rope);
      break;
    case RopeKind::kLongRope: {
      const bool is_long = rope.context_tokens > rope.original_positions;
      const std::vector<double>& factors = is_long ? rope.long_factors : rope.short_factors;
      for (int64_t i = 0; i < n; ++i) base[i] /= factors[i];
      break;
    }
    case RopeKind::kLlama3:
      for (int64_t i = 0; i < n; ++i) {
        const double turns =
            static_cast<double>(rope.original_positions) * base[i] / (2 * std::numbers::pi);
        keep[i] = std::clamp(
            (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0,
            1.0);
      }
      break;
  }
  for (int64_t i = 0; i < n; ++i) base[i] *= keep[i] + (1 - keep[i]) / rope.factor;
  return base;
}

}  // namespace longhaul
