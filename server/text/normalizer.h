// Normalizer: what a tokenizer.json changes in a text before anything else. Immutable after
// loading; any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "server/text/regex_splitter.h"
#include "server/text/unicode.h"

namespace longhaul {

// One step of "normalizer".
struct NormalizerStep {
  enum Kind : uint8_t { kForm, kPrepend, kReplace, kLowercase, kStrip } kind;
  NormalForm form = NormalForm::kNfc;                      // kForm
  std::string from = "";                                   // kReplace without a pattern
  std::shared_ptr<const RegexSplitter> pattern = nullptr;  // kReplace of its matches
  std::string to = "";                                     // kReplace; the prefix of kPrepend
  bool strip_left = false;                                 // kStrip
  bool strip_right = false;
};

// Replaces every occurrence and appends the result to `out`.
void ReplaceAll(std::string_view text, std::string_view from, std::string_view to,
                std::string* out);

// What `text` (valid UTF-8) becomes; the result lies in `text` or in `buffer`. InvalidArgument when
// it grows beyond 1.5 GiB, which 32-bit offsets leave room for.
absl::StatusOr<std::string_view> Normalize(const std::vector<NormalizerStep>& steps,
                                           const CharClasses& classes, std::string_view text,
                                           std::string* buffer);

}  // namespace longhaul
