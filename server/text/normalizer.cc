#include "server/text/normalizer.h"

#include <fmt/format.h>

#include <algorithm>

namespace longhaul {
namespace {

constexpr size_t kMaxNormalized_bytes = size_t{3} << 29;

std::string_view Strip(const NormalizerStep& step, const CharClasses& classes,
                       std::string_view text) {
  const auto is_space = [&classes](const char* p) {
    return (classes[DecodeUtf8(p).code_point] & CharClasses::kSpace) != 0;
  };
  while (step.strip_left && !text.empty() && is_space(text.data())) {
    text.remove_prefix(DecodeUtf8(text.data()).length);
  }
  while (step.strip_right && !text.empty()) {
    const int length = LastCharLength(text.data() + text.size());
    if (!is_space(text.data() + text.size() - length)) break;
    text.remove_suffix(length);
  }
  return text;
}

// Upper bound of a step's result; normal forms watch theirs themselves.
size_t MaxResult_bytes(const NormalizerStep& step, size_t n_bytes) {
  switch (step.kind) {
    case NormalizerStep::kPrepend:
      return n_bytes + step.to.size();
    case NormalizerStep::kReplace: {
      const size_t n_from = step.pattern ? step.pattern->MinMatch_bytes() : step.from.size();
      return std::max(n_bytes, (n_bytes + n_from - 1) / n_from * step.to.size());
    }
    case NormalizerStep::kLowercase:
      return n_bytes + n_bytes / 2;
    default:
      return n_bytes;
  }
}

}  // namespace

void ReplaceAll(std::string_view text, std::string_view from, std::string_view to,
                std::string* out) {
  out->reserve(text.size() + text.size() / 4);
  for (;;) {
    const size_t at = text.find(from);
    out->append(text.substr(0, at));
    if (at == std::string_view::npos) return;
    out->append(to);
    text.remove_prefix(at + from.size());
  }
}

absl::StatusOr<std::string_view> Normalize(const std::vector<NormalizerStep>& steps,
                                           const CharClasses& classes, std::string_view text,
                                           std::string* buffer) {
  for (const NormalizerStep& step : steps) {
    if (MaxResult_bytes(step, text.size()) > kMaxNormalized_bytes) {
      return absl::InvalidArgumentError(
          fmt::format("a text of {} bytes may grow beyond {} when normalized; send a shorter one",
                      text.size(), kMaxNormalized_bytes));
    }
    std::string result;
    switch (step.kind) {
      case NormalizerStep::kForm: {
        LH_ASSIGN_OR_RETURN(std::optional<std::string> form,
                            ToNormalForm(step.form, text, kMaxNormalized_bytes));
        if (!form) continue;
        result = *std::move(form);
        break;
      }
      case NormalizerStep::kPrepend:
        if (text.empty()) continue;
        result.append(step.to).append(text);
        break;
      case NormalizerStep::kReplace:
        if (step.pattern != nullptr) {
          LH_RETURN_IF_ERROR(step.pattern->Replace(text, step.to, &result));
        } else {
          ReplaceAll(text, step.from, step.to, &result);
        }
        break;
      case NormalizerStep::kLowercase:
        result = ToLower(text);
        break;
      case NormalizerStep::kStrip:
        text = Strip(step, classes, text);
        continue;
    }
    *buffer = std::move(result);
    text = *buffer;
  }
  return text;
}

}  // namespace longhaul
