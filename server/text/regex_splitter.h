// RegexSplitter: a compiled pattern that cuts a text into matches and gaps. PCRE2 with JIT, UTF and
// Unicode classes. Immutable after construction; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul {

class RegexSplitter {
 public:
  // Unimplemented when PCRE2 does not accept the pattern: it came from a tokenizer.json, which is
  // written for Oniguruma.
  static absl::StatusOr<std::unique_ptr<RegexSplitter>> Compile(const std::string& pattern);
  ~RegexSplitter();

  // `pieces` are the end offsets of the pieces of `text`. Appends to `ends` the end offset of every
  // match, and of every gap between matches, inside each piece.
  absl::Status Split(std::string_view text, const std::vector<uint32_t>& pieces,
                     std::vector<uint32_t>* ends) const;

 private:
  struct Code;
  RegexSplitter(std::string pattern, std::unique_ptr<Code> code);

  std::string pattern_;
  std::unique_ptr<Code> code_;
};

}  // namespace longhaul
