#include "server/text/pretokenizer.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace longhaul {
namespace {

constexpr size_t kMinPart_bytes = 32 << 10;  // of a thread

// Walks a text by characters and their classes. Every Match function returns the end of the piece
// that starts at `p`; each states the alternative of the pattern it stands for.
class Walker {
 public:
  Walker(const CharClasses& classes, const char* end) : classes_(classes), end_(end) {}

  struct Char {
    uint32_t code_point;
    uint8_t bits;      // CharClasses; kOther when none
    const char* next;  // behind the character
  };
  static constexpr uint8_t kOther = 8;
  static constexpr uint8_t kEnd = 16;

  Char At(const char* p) const {
    if (p == end_) return {0, kEnd, p};
    const Utf8Char c = DecodeUtf8(p);
    const uint8_t bits = classes_[c.code_point];
    return {c.code_point, bits != 0 ? bits : kOther, p + c.length};
  }

  // End of the run of characters with any of `bits`, at most `max` of them.
  const char* Run(const char* p, uint8_t bits, int64_t max = INT64_MAX) const {
    for (; max > 0; --max) {
      const Char c = At(p);
      if ((c.bits & bits) == 0) break;
      p = c.next;
    }
    return p;
  }

  // 's|'t|'re|'ve|'m|'ll|'d at an apostrophe, or p. `fold` is (?i:...), under which U+017F is an s.
  const char* Contraction(const char* p, bool fold) const {
    const auto letter = [this, fold](const char* q) -> uint32_t {
      if (q == end_) return 0;
      const uint32_t c = DecodeUtf8(q).code_point;
      if (!fold) return c;
      if (c == 0x17F) return 's';
      return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
    };
    const uint32_t first = letter(p + 1);
    if (first == 's') return p + 1 + DecodeUtf8(p + 1).length;
    if (first == 't' || first == 'm' || first == 'd') return p + 2;
    if (first != 'r' && first != 'v' && first != 'l') return p;
    return letter(p + 2) == (first == 'l' ? 'l' : 'e') ? p + 3 : p;
  }

  // \s+(?!\S)|\s+ over the whitespace run [p, run_end): all of it at the end of the text, else all
  // but the last character, which belongs to what follows.
  const char* Spaces(const char* p, const char* run_end) const {
    if (run_end == end_) return run_end;
    const char* last = run_end - LastCharLength(run_end);
    return last > p ? last : run_end;
  }

  const char* MatchGpt2(const char* p) const {
    using C = CharClasses;
    const Char c = At(p);
    if (c.code_point == '\'') {
      if (const char* q = Contraction(p, /*fold=*/false); q != p) return q;
    }
    // " ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    const Char d = c.code_point == ' ' ? At(c.next) : c;
    for (const uint8_t bits : {uint8_t{C::kLetter}, uint8_t{C::kNumber}, kOther}) {
      if (d.bits & bits) return Run(d.next, bits);
    }
    return Spaces(p, Run(p, C::kSpace));
  }

  const char* MatchLlama3(const char* p, int max_digits) const {
    using C = CharClasses;
    const Char c = At(p);
    if (c.code_point == '\'') {
      if (const char* q = Contraction(p, /*fold=*/true); q != p) return q;
    }
    // [^\r\n\p{L}\p{N}]?\p{L}+
    if (c.bits & C::kLetter) return Run(c.next, C::kLetter);
    const bool is_newline = c.code_point == '\r' || c.code_point == '\n';
    if (!is_newline && (c.bits & C::kNumber) == 0 && (At(c.next).bits & C::kLetter)) {
      return Run(c.next, C::kLetter);
    }
    // \p{N}{1,3}
    if (c.bits & C::kNumber) return Run(p, C::kNumber, max_digits);
    // " ?[^\s\p{L}\p{N}]+[\r\n]*"
    const Char d = c.code_point == ' ' ? At(c.next) : c;
    if (d.bits & kOther) {
      const char* q = Run(d.next, kOther);
      while (q != end_ && (*q == '\r' || *q == '\n')) ++q;
      return q;
    }
    // \s*[\r\n]+ takes the whitespace run up to its last newline.
    const char* run_end = p;
    const char* after_newline = nullptr;
    for (Char s = c; s.bits & C::kSpace; s = At(run_end)) {
      run_end = s.next;
      if (s.code_point == '\r' || s.code_point == '\n') after_newline = run_end;
    }
    return after_newline != nullptr ? after_newline : Spaces(p, run_end);
  }

 private:
  const CharClasses& classes_;
  const char* end_;
};

}  // namespace

absl::Status PreTokenizer::AddPattern(const std::string& pattern, SplitBehavior behavior) {
  Step step{Matcher::kRegex, nullptr};
  if (behavior != SplitBehavior::kIsolated) {
    LH_ASSIGN_OR_RETURN(step.regex, RegexSplitter::Compile(pattern, behavior));
  } else if (pattern == kGpt2Pattern) {
    step.matcher = Matcher::kGpt2;
  } else if (pattern == kLlama3Pattern) {
    step.matcher = Matcher::kLlama3;
  } else if (pattern == kQwen2Pattern) {
    step.matcher = Matcher::kQwen2;
  } else {
    LH_ASSIGN_OR_RETURN(step.regex, RegexSplitter::Compile(pattern));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

uint32_t PreTokenizer::MatchEnd(const Step& step, std::string_view text, size_t at) const {
  const Walker walker(classes_, text.data() + text.size());
  const char* p = text.data() + at;
  const int max_digits = step.matcher == Matcher::kLlama3 ? 3 : 1;
  const char* end =
      step.matcher == Matcher::kGpt2 ? walker.MatchGpt2(p) : walker.MatchLlama3(p, max_digits);
  return static_cast<uint32_t>(end - text.data());
}

// Where a match ends depends on what follows its beginning and on nothing before. So threads may
// begin anywhere: from the first border that a part shares with the ones before it, all of its
// borders are right. Until then they are found again by one thread.
void PreTokenizer::RunMatcher(const Step& step, std::string_view text, ThreadPool* pool,
                              std::vector<uint32_t>* ends) const {
  // A match may run to the end of the text, for every part: few parts keep that linear.
  const size_t n_parts = std::max<size_t>(
      1,
      pool == nullptr ? 1 : std::min<size_t>(2 * pool->n_threads(), text.size() / kMinPart_bytes));
  std::vector<size_t> begins;
  for (size_t part = 0; part < n_parts; ++part) {
    size_t begin = text.size() / n_parts * part;
    while ((static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    begins.push_back(begin);
  }
  begins.push_back(text.size());
  std::vector<std::vector<uint32_t>> parts(n_parts);
  const auto run = [&](int64_t part, int) {
    for (size_t at = begins[part]; at < begins[part + 1];) {
      parts[part].push_back(MatchEnd(step, text, at));
      at = parts[part].back();
    }
  };
  if (n_parts == 1) {
    run(0, 0);
  } else {
    pool->ParallelFor(static_cast<int64_t>(n_parts), run);
  }
  *ends = std::move(parts[0]);
  for (size_t part = 1; part < n_parts; ++part) {
    const std::vector<uint32_t>& right = parts[part];
    while (ends->back() < begins[part + 1]) {
      const uint32_t at = ends->back();
      auto next = right.begin();
      if (at != begins[part]) {
        next = std::lower_bound(right.begin(), right.end(), at);
        if (*next != at) {
          ends->push_back(MatchEnd(step, text, at));
          continue;
        }
        ++next;
      }
      ends->insert(ends->end(), next, right.end());
    }
  }
}

bool PreTokenizer::removes() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const Step& step) {
    return step.regex != nullptr && step.regex->removes();
  });
}

absl::Status PreTokenizer::RunStep(const Step& step, std::string_view text,
                                   const std::vector<uint32_t>& pieces, ThreadPool* pool,
                                   std::vector<uint32_t>* ends, std::string* kept) const {
  if (step.matcher == Matcher::kRegex) return step.regex->Split(text, pieces, ends, kept);
  if (pieces.size() == 1) {
    RunMatcher(step, text, pool, ends);
    return absl::OkStatus();
  }
  size_t at = 0;
  for (const uint32_t piece_end : pieces) {
    while (at != piece_end) {
      ends->push_back(MatchEnd(step, text.substr(0, piece_end), at));
      at = ends->back();
    }
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::Split(std::string_view text, std::vector<uint32_t>* ends,
                                 ThreadPool* pool, std::string* kept) const {
  LH_CHECK(kept != nullptr || !removes());
  if (text.empty()) return absl::OkStatus();
  std::vector<uint32_t> pieces = {static_cast<uint32_t>(text.size())};
  for (const Step& step : steps_) {
    std::vector<uint32_t> finer;
    std::string rest;
    LH_RETURN_IF_ERROR(RunStep(step, text, pieces, pool, &finer, &rest));
    pieces = std::move(finer);
    if (step.regex != nullptr && step.regex->removes()) {
      *kept = std::move(rest);
      text = *kept;
      if (text.empty()) return absl::OkStatus();
    }
  }
  if (ends->empty()) {
    *ends = std::move(pieces);
  } else {
    ends->insert(ends->end(), pieces.begin(), pieces.end());
  }
  return absl::OkStatus();
}

}  // namespace longhaul
