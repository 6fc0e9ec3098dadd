#include "server/text/pretokenizer.h"

namespace longhaul {
namespace {

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

absl::Status PreTokenizer::RunStep(const Step& step, std::string_view text,
                                   const std::vector<uint32_t>& pieces,
                                   std::vector<uint32_t>* ends) const {
  if (step.matcher == Matcher::kRegex) return step.regex->Split(text, pieces, ends);
  const int max_digits = step.matcher == Matcher::kLlama3 ? 3 : 1;
  const char* p = text.data();
  for (const uint32_t piece_end : pieces) {
    const char* const end = text.data() + piece_end;
    const Walker walker(classes_, end);
    while (p != end) {
      p = step.matcher == Matcher::kGpt2 ? walker.MatchGpt2(p) : walker.MatchLlama3(p, max_digits);
      ends->push_back(static_cast<uint32_t>(p - text.data()));
    }
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::Split(std::string_view text, std::vector<uint32_t>* ends) const {
  if (text.empty()) return absl::OkStatus();
  std::vector<uint32_t> pieces = {static_cast<uint32_t>(text.size())};
  for (const Step& step : steps_) {
    std::vector<uint32_t> finer;
    LH_RETURN_IF_ERROR(RunStep(step, text, pieces, &finer));
    pieces = std::move(finer);
  }
  if (ends->empty()) {
    *ends = std::move(pieces);
  } else {
    ends->insert(ends->end(), pieces.begin(), pieces.end());
  }
  return absl::OkStatus();
}

}  // namespace longhaul
