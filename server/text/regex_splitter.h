// RegexSplitter: a compiled pattern that cuts a text at its matches. PCRE2 with JIT, UTF and
// Unicode classes; patterns mean what they mean to Oniguruma, which tokenizer.json is written for.
// Immutable after construction; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul {

// What becomes of a match, by the example of '-' in "the-final--countdown".
enum class SplitBehavior : uint8_t {
  kIsolated,            // the|-|final|-|-|countdown
  kMergedWithPrevious,  // the-|final-|-|countdown
  kMergedWithNext,      // the|-final|-|-countdown
  kContiguous,          // the|-|final|--|countdown
};

class RegexSplitter {
 public:
  // Unimplemented when PCRE2 does not accept the pattern, or would read it in another way.
  static absl::StatusOr<std::unique_ptr<RegexSplitter>> Compile(
      const std::string& pattern, SplitBehavior behavior = SplitBehavior::kIsolated);
  ~RegexSplitter();

  // `pieces` are the end offsets of the pieces of `text`. Appends to `ends` the end offsets of the
  // finer pieces that each is cut into.
  absl::Status Split(std::string_view text, const std::vector<uint32_t>& pieces,
                     std::vector<uint32_t>* ends) const;

 private:
  struct Code;
  RegexSplitter(std::string pattern, SplitBehavior behavior, std::unique_ptr<Code> code);

  std::string pattern_;
  SplitBehavior behavior_;
  std::unique_ptr<Code> code_;
};

}  // namespace longhaul
