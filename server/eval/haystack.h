// What the prompts of an evaluation are filled with: sentences of a text, and the search for as
// many of them as make a prompt of a wanted length. Immutable after it was made.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul::eval {

class Haystack {
 public:
  // The file's sentences. Errors of ReadText; InvalidArgument when it has fewer than two sentences.
  static absl::StatusOr<Haystack> FromFile(const std::string& path);
  // Plain sentences of simple words, about `n_words` of them, the same every time.
  static Haystack BuiltIn(int64_t n_words);
  static absl::StatusOr<Haystack> FromText(std::string text);

  int64_t n_sentences() const { return static_cast<int64_t>(ends_.size()); }
  const std::string& text() const { return text_; }
  // `n` sentences from number `first` on, each with the space that follows it. The text begins
  // again behind its end.
  std::string Sentences(int64_t first, int64_t n) const;

 private:
  Haystack(std::string text, std::vector<size_t> ends)
      : text_(std::move(text)), ends_(std::move(ends)) {}

  std::string text_;
  std::vector<size_t> ends_;  // of the sentences; the first begins at 0
};

// A text to plant in a haystack.
struct Planted {
  double depth = 0;  // 0 = start, 1 = end
  std::string text;
};
// Sentences [first, first + n) with the planted texts between them, those of the same place in
// their order.
std::string Plant(const Haystack& haystack, int64_t first, int64_t n,
                  const std::vector<Planted>& planted);

// Tokens of a prompt as the model sees it.
using TokenCounter = std::function<absl::StatusOr<int64_t>(const std::string&)>;

// The largest n for which make(n) has at most `length_tokens` tokens, or one that is less than 1 %
// and 32 tokens short of it; and that prompt. make(n) must grow with n. InvalidArgument when
// make(0) is longer.
struct Fitted {
  int64_t n = 0;
  int64_t n_tokens = 0;
  std::string text;
};
absl::StatusOr<Fitted> FitLength(int64_t length_tokens, const TokenCounter& count,
                                 const std::function<std::string(int64_t)>& make);

}  // namespace longhaul::eval
