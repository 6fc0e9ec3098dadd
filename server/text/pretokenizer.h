// PreTokenizer: cuts a text into the pieces inside which BPE may merge. The patterns of GPT-2,
// Llama-3 and Qwen2 run on hand-written matchers (5 MB in 17 ms, PCRE2 with JIT 48 ms); any other
// pattern runs on PCRE2. Immutable after construction; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/base/thread_pool.h"
#include "server/text/regex_splitter.h"
#include "server/text/unicode.h"

namespace longhaul {

// The patterns as their tokenizer.json files spell them.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

class PreTokenizer {
 public:
  PreTokenizer() = default;

  // Adds a step that cuts every piece of the steps before it at the matches of `pattern`.
  // Unimplemented when PCRE2 cannot compile it.
  absl::Status AddPattern(const std::string& pattern,
                          SplitBehavior behavior = SplitBehavior::kIsolated);

  // Cuts `text` (valid UTF-8, below 2 GiB) and appends the end offset of every piece to `ends`; no
  // piece is empty. Without steps the text is one piece. Fails only when a pattern from the file
  // exceeds PCRE2's match limit. With a pool, a hand-written matcher
  // that is the first step runs on all its threads; the ends are the same. Where removes(), `ends`
  // are offsets in `kept`, which gets what the steps leave of the text.
  absl::Status Split(std::string_view text, std::vector<uint32_t>* ends, ThreadPool* pool = nullptr,
                     std::string* kept = nullptr) const;

  // True when a step removes parts of the text.
  bool removes() const;

  size_t n_steps() const { return steps_.size(); }

 private:
  enum class Matcher : uint8_t { kGpt2, kLlama3, kQwen2, kRegex };
  struct Step {
    Matcher matcher;
    std::unique_ptr<RegexSplitter> regex;  // kRegex only
  };

  absl::Status RunStep(const Step& step, std::string_view text, const std::vector<uint32_t>& pieces,
                       ThreadPool* pool, std::vector<uint32_t>* ends, std::string* kept) const;
  void RunMatcher(const Step& step, std::string_view text, ThreadPool* pool,
                  std::vector<uint32_t>* ends) const;
  // End of the match of a hand-written matcher at `at`.
  uint32_t MatchEnd(const Step& step, std::string_view text, size_t at) const;

  CharClasses classes_;
  std::vector<Step> steps_;
};

}  // namespace longhaul
