#include "server/eval/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "server/eval/policy.h"

namespace longhaul::eval {
namespace {

constexpr int64_t kMinLength = 256;
constexpr int64_t kMaxLength = int64_t{1} << 24;
constexpr size_t kMaxListed = 64;  // values of one flag
constexpr int64_t kMaxSamples = 10000;

template <typename T>
absl::Status CheckList(const char* flag, const std::vector<T>& values) {
  if (values.empty() || values.size() > kMaxListed) {
    return absl::InvalidArgumentError(
        fmt::format("--{} has {} values, it must have 1 to {}", flag, values.size(), kMaxListed));
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::find(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(i), values[i]) !=
        values.begin() + static_cast<std::ptrdiff_t>(i)) {
      return absl::InvalidArgumentError(fmt::format("--{} has {} twice", flag, values[i]));
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status CheckRange(const char* flag, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();  // written so that NaN fails
  return absl::InvalidArgumentError(
      fmt::format("--{} is {}, it must be in [{}, {}]", flag, value, low, high));
}

}  // namespace

const std::vector<std::string>& SuiteNames() {
  static const std::vector<std::string> names = {"needle", "ruler", "passage", "ppl", "agreement"};
  return names;
}

absl::Status CheckOptions(const EvalOptions& options) {
  LH_RETURN_IF_ERROR(CheckList("suites", options.suites));
  LH_RETURN_IF_ERROR(CheckList("policies", options.policies));
  LH_RETURN_IF_ERROR(CheckList("lengths", options.lengths));
  LH_RETURN_IF_ERROR(CheckList("depths", options.depths));
  for (const std::string& suite : options.suites) {
    const std::vector<std::string>& known = SuiteNames();
    if (std::find(known.begin(), known.end(), suite) == known.end()) {
      return absl::InvalidArgumentError(
          fmt::format("suite '{}' is unknown; use {}", suite, fmt::join(known, ", ")));
    }
    if (!options.url.empty() && (suite == "ppl" || suite == "agreement")) {
      return absl::InvalidArgumentError(fmt::format(
          "suite '{}' compares the probabilities of single tokens, which --url cannot give for a "
          "long prompt; run it on a model folder with --model",
          suite));
    }
    if (suite == "ppl" && options.text_file.empty()) {
      return absl::InvalidArgumentError(
          "suite 'ppl' measures how well a document is predicted; name one with --text");
    }
  }
  for (const std::string& policy : options.policies) {
    LH_RETURN_IF_ERROR(ParsePolicy(policy).status());
  }
  for (const int64_t length : options.lengths) {
    LH_RETURN_IF_ERROR(CheckRange("lengths", length, kMinLength, kMaxLength));
  }
  for (const double depth : options.depths) {
    LH_RETURN_IF_ERROR(CheckRange("depths", depth, 0.0, 1.0));
  }
  LH_RETURN_IF_ERROR(CheckRange("samples", options.samples, int64_t{1}, kMaxSamples));
  return CheckRange("timeout", options.timeout_s, 0.001, 1e6);
}

absl::Status CheckOptions(const CalibrateOptions& options) {
  if (options.text_file.empty()) {
    return absl::InvalidArgumentError(
        "--text is missing: name a file with text as your prompts have it");
  }
  if (options.out_path.empty()) {
    return absl::InvalidArgumentError("--out is empty: name the YAML file to write");
  }
  LH_RETURN_IF_ERROR(CheckList("length", options.lengths));
  for (const int64_t length : options.lengths) {
    LH_RETURN_IF_ERROR(CheckRange("length", length, kMinLength, kMaxLength));
  }
  LH_RETURN_IF_ERROR(CheckRange("samples", options.samples, int64_t{1}, kMaxSamples));
  const AccuracyTarget& target = options.target;
  LH_RETURN_IF_ERROR(CheckRange("min-agreement", target.min_agreement, 0.0, 1.0));
  LH_RETURN_IF_ERROR(
      CheckRange("max-kl", target.max_kl, 0.0, std::numeric_limits<double>::infinity()));
  LH_RETURN_IF_ERROR(CheckRange("max-perplexity-rise", target.max_perplexity_rise, 0.0, 1e6));
  LH_RETURN_IF_ERROR(CheckRange("min-recall", target.min_recall, 0.0, 1.0));
  return CheckRange("min-recall-p1", target.min_recall_p1, 0.0, 1.0);
}

}  // namespace longhaul::eval
