#include "server/eval/haystack.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "server/eval/files.h"
#include "server/load/prompt_text.h"

namespace longhaul::eval {
namespace {

constexpr int64_t kMaxUnits = int64_t{1} << 26;  // of a prompt: sentences, words
constexpr int kMaxTrials = 24;

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// Behind the spaces that follow a full stop, a question or exclamation mark (and a closing quote),
// or an empty line.
std::vector<size_t> SentenceEnds(const std::string& text) {
  std::vector<size_t> ends;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool mark = text[i] == '.' || text[i] == '?' || text[i] == '!';
    const bool paragraph = text[i] == '\n' && i + 1 < text.size() && text[i + 1] == '\n';
    if (!mark && !paragraph) continue;
    size_t end = i + 1;
    while (mark && end < text.size() && (text[end] == '"' || text[end] == '\'')) ++end;
    const size_t space = end;
    while (end < text.size() && IsSpace(text[end])) ++end;
    if (mark && end == space) continue;  // inside a number, or the end of the text
    ends.push_back(end);
    i = end - 1;
  }
  return ends;
}

}  // namespace

absl::StatusOr<Haystack> Haystack::FromFile(const std::string& path) {
  LH_ASSIGN_OR_RETURN(std::string text, ReadText("--text", path));
  auto haystack = FromText(std::move(text));
  if (haystack.ok()) return haystack;
  return absl::InvalidArgumentError(
      fmt::format("--text: {} {}", path, std::string(haystack.status().message())));
}

absl::StatusOr<Haystack> Haystack::FromText(std::string text) {
  std::vector<size_t> ends = SentenceEnds(text);
  if (ends.size() < 2) {
    return absl::InvalidArgumentError("has fewer than two sentences; give a longer text");
  }
  text.resize(ends.back());
  return Haystack(std::move(text), std::move(ends));
}

Haystack Haystack::BuiltIn(int64_t n_words) {
  constexpr int64_t kMinWords = 256;
  load::PromptText prompts(/*seed=*/0, /*run_id=*/0);
  return *FromText(prompts.Filler(std::max(n_words, kMinWords)) + "\n");
}

std::string Haystack::Sentences(int64_t first, int64_t n) const {
  std::string result;
  first %= n_sentences();
  while (n > 0) {
    const int64_t last = std::min(first + n, n_sentences());
    const size_t begin = first == 0 ? 0 : ends_[first - 1];
    result.append(text_, begin, ends_[last - 1] - begin);
    n -= last - first;
    first = 0;
  }
  return result;
}

std::string Plant(const Haystack& haystack, int64_t first, int64_t n,
                  const std::vector<Planted>& planted) {
  std::vector<Planted> sorted = planted;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Planted& a, const Planted& b) { return a.depth < b.depth; });
  std::string result;
  int64_t done = 0;
  for (const Planted& piece : sorted) {
    const auto place = static_cast<int64_t>(std::llround(piece.depth * static_cast<double>(n)));
    result += haystack.Sentences(first + done, place - done);
    result += piece.text;
    result += ' ';
    done = place;
  }
  return result + haystack.Sentences(first + done, n - done);
}

absl::StatusOr<Fitted> FitLength(int64_t length_tokens, const TokenCounter& count,
                                 const std::function<std::string(int64_t)>& make) {
  Fitted best{.n = 0, .n_tokens = 0, .text = make(0)};
  LH_ASSIGN_OR_RETURN(best.n_tokens, count(best.text));
  if (best.n_tokens > length_tokens) {
    return absl::InvalidArgumentError(fmt::format(
        "a prompt of it has at least {} tokens, and {} were asked for; use greater --lengths",
        best.n_tokens, length_tokens));
  }
  // The answer lies in [best.n, too_many). The first step is small, the next ones extrapolate or
  // interpolate: a count of a long prompt takes time.
  int64_t too_many = kMaxUnits, tokens_of_too_many = 0;
  for (int trial = 0; trial < kMaxTrials && best.n + 1 < too_many; ++trial) {
    const int64_t missing = length_tokens - best.n_tokens;
    if (best.n > 0 && missing < 32 && missing * 100 <= length_tokens) break;
    double next = 32;
    if (tokens_of_too_many > 0) {
      next = static_cast<double>(best.n) +
             static_cast<double>(too_many - best.n) * static_cast<double>(missing) /
                 static_cast<double>(tokens_of_too_many - best.n_tokens);
    } else if (best.n > 0) {
      next = static_cast<double>(best.n) * static_cast<double>(length_tokens) /
                 static_cast<double>(std::max<int64_t>(best.n_tokens, 1)) +
             1;
    }
    const auto n = std::clamp(static_cast<int64_t>(std::min(next, 1e15)), best.n + 1, too_many - 1);
    std::string text = make(n);
    LH_ASSIGN_OR_RETURN(const int64_t n_tokens, count(text));
    if (n_tokens <= length_tokens) {
      best = {.n = n, .n_tokens = n_tokens, .text = std::move(text)};
    } else {
      too_many = n;
      tokens_of_too_many = n_tokens;
    }
  }
  return best;
}

}  // namespace longhaul::eval
