// RegexSplitter: a compiled pattern that cuts a text at its matches, or replaces them. PCRE2 with
// JIT, UTF and Unicode classes; patterns mean what they mean to Oniguruma, which tokenizer.json is
// written for. Immutable after construction; any thread.
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
  kRemoved,             // the|final|countdown
  kOthersRemoved,       // -|-|-
};

class RegexSplitter {
 public:
  // Unimplemented when PCRE2 does not accept the pattern, or would read it in another way.
  static absl::StatusOr<std::unique_ptr<RegexSplitter>> Compile(
      const std::string& pattern, SplitBehavior behavior = SplitBehavior::kIsolated);
  ~RegexSplitter();

  // `pieces` are the end offsets of the pieces of `text`. Appends to `ends` the end offsets of the
  // finer pieces that each is cut into. What is not removed is appended to `kept`, and `ends` are
  // offsets there; `kept` is not used (may be null) by the behaviors that remove nothing.
  absl::Status Split(std::string_view text, const std::vector<uint32_t>& pieces,
                     std::vector<uint32_t>* ends, std::string* kept) const;
  bool removes() const {
    return behavior_ == SplitBehavior::kRemoved || behavior_ == SplitBehavior::kOthersRemoved;
  }

  // Appends `text` to `out` with every match replaced.
  absl::Status Replace(std::string_view text, std::string_view replacement, std::string* out) const;
  // The length of the shortest match; 0: the pattern can match nothing at all, and such matches are
  // not found.
  size_t MinMatch_bytes() const;

 private:
  struct Code;
  struct Memory;  // of one thread
  RegexSplitter(std::string pattern, SplitBehavior behavior, std::unique_ptr<Code> code);

  // Calls on_match(begin, end) for every match in `piece`.
  template <typename OnMatch>
  absl::Status ForEachMatch(std::string_view piece, const Memory& memory, OnMatch on_match) const;

  std::string pattern_;
  SplitBehavior behavior_;
  std::unique_ptr<Code> code_;
};

}  // namespace longhaul
