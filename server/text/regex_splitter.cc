#include "server/text/regex_splitter.h"

#include <fmt/format.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

namespace longhaul {
namespace {

constexpr size_t kMaxPattern_bytes = 16 << 10;
constexpr size_t kJitStack_bytes = 1 << 20;

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

// A backslash and `c` outside and inside a class, where PCRE2 and Oniguruma differ: PCRE2 counts
// U+180E as space and no combining mark as word; to Oniguruma \h is a hexadecimal digit, and \w
// takes the superscripts and fractions of Latin-1, but not in a class. Empty: the same in both.
std::string_view Translated(char c, bool in_class) {
  switch (c) {
    case 's':
      return in_class ? R"(\t-\r\u0085\p{Z})" : R"([\t-\r\u0085\p{Z}])";
    case 'S':
      return in_class ? "" : R"([^\t-\r\u0085\p{Z}])";
    case 'w':
      return in_class ? R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})"
                      : R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u00B2\u00B3\u00B9\u00BC-\u00BE])";
    case 'W':
      return in_class ? "" : R"([^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u00B2\u00B3\u00B9\u00BC-\u00BE])";
    case 'h':
      return in_class ? "0-9a-fA-F" : "[0-9a-fA-F]";
    case 'H':
      return in_class ? "" : "[^0-9a-fA-F]";
    default:
      return "";
  }
}

// An Oniguruma pattern in PCRE2's language.
absl::StatusOr<std::string> ForPcre2(std::string_view pattern) {
  std::string result;
  bool in_class = false;
  size_t class_begin = 0;  // where its first member may stand
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const std::string_view escape = pattern.substr(i++, 2);
      const std::string_view translated = Translated(escape[1], in_class);
      result.append(translated.empty() ? escape : translated);
      continue;
    }
    result.push_back(c);
    if (!in_class && c == '[') {
      in_class = true;
      class_begin = pattern.substr(i + 1).starts_with('^') ? i + 2 : i + 1;
    } else if (in_class && c == ']' && i != class_begin) {
      in_class = false;
    } else if (in_class && (c == '[' || pattern.substr(i).starts_with("&&"))) {
      return absl::UnimplementedError(
          fmt::format("the pattern {} has a set inside a set at offset {}; write it as one set "
                      "(a '[' that is meant literally as \\[)",
                      pattern, i));
    }
  }
  return result;
}

template <auto kFree>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using MatchData = std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Deleter<pcre2_compile_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>>;

// The ends that come with the beginning of a match at `match_begin`, the one before it having ended
// at `done`, which is `piece_begin` for the first.
void AppendMatch(SplitBehavior behavior, uint32_t done, uint32_t match_begin, uint32_t piece_begin,
                 std::vector<uint32_t>* ends) {
  switch (behavior) {
    case SplitBehavior::kIsolated:
      if (match_begin > done) ends->push_back(match_begin);
      break;
    case SplitBehavior::kMergedWithPrevious:
      break;
    case SplitBehavior::kMergedWithNext:
      if (match_begin > piece_begin) ends->push_back(match_begin);
      break;
    case SplitBehavior::kContiguous:
      if (match_begin > done) {
        ends->push_back(match_begin);
      } else if (done > piece_begin) {
        ends->pop_back();  // one piece with the match before
      }
      break;
    case SplitBehavior::kRemoved:
    case SplitBehavior::kOthersRemoved:
      break;  // RegexSplitter::Split copies what is left
  }
}

}  // namespace

struct RegexSplitter::Code {
  std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>> pattern;
};

RegexSplitter::RegexSplitter(std::string pattern, SplitBehavior behavior,
                             std::unique_ptr<Code> code)
    : pattern_(std::move(pattern)), behavior_(behavior), code_(std::move(code)) {}
RegexSplitter::~RegexSplitter() = default;

absl::StatusOr<std::unique_ptr<RegexSplitter>> RegexSplitter::Compile(const std::string& pattern,
                                                                      SplitBehavior behavior) {
  if (pattern.size() > kMaxPattern_bytes) {
    return absl::UnimplementedError(fmt::format("a pattern of {} bytes, at most {} are accepted",
                                                pattern.size(), kMaxPattern_bytes));
  }
  LH_ASSIGN_OR_RETURN(const std::string translated, ForPcre2(pattern));
  const CompileContext context(pcre2_compile_context_create(nullptr));
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for a pattern");
  int error = pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  PCRE2_SIZE offset = 0;
  // Oniguruma's \uHHHH, and its ^ and $, which match at every line.
  constexpr uint32_t kOptions =
      PCRE2_UTF | PCRE2_UCP | PCRE2_ALT_BSUX | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  auto code = std::make_unique<Code>();
  code->pattern.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                                    translated.size(), kOptions, &error, &offset, context.get()));
  if (code->pattern == nullptr) {
    return absl::UnimplementedError(fmt::format("the pattern {} does not compile: {} at offset {}",
                                                pattern, ErrorText(error), offset));
  }
  // Without JIT (a hardened kernel may forbid it) pcre2_match interprets: slower, same result.
  pcre2_jit_compile(code->pattern.get(), PCRE2_JIT_COMPLETE);
  return std::unique_ptr<RegexSplitter>(new RegexSplitter(pattern, behavior, std::move(code)));
}

struct RegexSplitter::Memory {
  explicit Memory(const Code& code)
      : match(pcre2_match_data_create_from_pattern(code.pattern.get(), nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(32 << 10, kJitStack_bytes, nullptr)) {
    if (context != nullptr) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }

  absl::Status status() const {
    if (match != nullptr && context != nullptr && stack != nullptr) return absl::OkStatus();
    return absl::ResourceExhaustedError("no memory for the matcher of the tokenizer's pattern");
  }

  MatchData match;
  MatchContext context;
  JitStack stack;
};

template <typename OnMatch>
absl::Status RegexSplitter::ForEachMatch(std::string_view piece, const Memory& memory,
                                         OnMatch on_match) const {
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(memory.match.get());
  for (size_t done = 0; done < piece.size(); done = range[1]) {
    const int rc = pcre2_match(code_->pattern.get(), reinterpret_cast<PCRE2_SPTR>(piece.data()),
                               piece.size(), done, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY,
                               memory.match.get(), memory.context.get());
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return absl::InvalidArgumentError(fmt::format(
          "the tokenizer's pattern {} fails on this text: {}", pattern_, ErrorText(rc)));
    }
    // \K can make a match begin before the search position or behind its end.
    if (range[0] < done || range[1] <= range[0]) {
      return absl::InvalidArgumentError(
          fmt::format("the tokenizer's pattern {} matches backwards", pattern_));
    }
    on_match(range[0], range[1]);
  }
  return absl::OkStatus();
}

absl::Status RegexSplitter::Split(std::string_view text, const std::vector<uint32_t>& pieces,
                                  std::vector<uint32_t>* ends, std::string* kept) const {
  const Memory memory(*code_);
  LH_RETURN_IF_ERROR(memory.status());
  uint32_t piece_begin = 0;
  for (const uint32_t piece_end : pieces) {
    const std::string_view piece = text.substr(piece_begin, piece_end - piece_begin);
    size_t done = 0;  // everything before it is dealt with
    const auto keep = [&](size_t begin, size_t end) {
      if (begin == end) return;
      kept->append(piece.substr(begin, end - begin));
      ends->push_back(static_cast<uint32_t>(kept->size()));
    };
    const auto on_match = [&](size_t begin, size_t end) {
      if (behavior_ == SplitBehavior::kRemoved) {
        keep(done, begin);
      } else if (behavior_ == SplitBehavior::kOthersRemoved) {
        keep(begin, end);
      } else {
        AppendMatch(behavior_, piece_begin + static_cast<uint32_t>(done),
                    piece_begin + static_cast<uint32_t>(begin), piece_begin, ends);
        if (behavior_ != SplitBehavior::kMergedWithNext) {
          ends->push_back(piece_begin + static_cast<uint32_t>(end));
        }
      }
      done = end;
    };
    LH_RETURN_IF_ERROR(ForEachMatch(piece, memory, on_match));
    if (behavior_ == SplitBehavior::kRemoved) keep(done, piece.size());
    if (!removes() && (ends->empty() || ends->back() != piece_end)) ends->push_back(piece_end);
    piece_begin = piece_end;
  }
  return absl::OkStatus();
}

absl::Status RegexSplitter::Replace(std::string_view text, std::string_view replacement,
                                    std::string* out) const {
  const Memory memory(*code_);
  LH_RETURN_IF_ERROR(memory.status());
  size_t done = 0;
  const auto on_match = [&](size_t begin, size_t end) {
    out->append(text.substr(done, begin - done)).append(replacement);
    done = end;
  };
  LH_RETURN_IF_ERROR(ForEachMatch(text, memory, on_match));
  out->append(text.substr(done));
  return absl::OkStatus();
}

size_t RegexSplitter::MinMatch_bytes() const {
  uint32_t may_be_empty = 1, n_characters = 0;
  pcre2_pattern_info(code_->pattern.get(), PCRE2_INFO_MATCHEMPTY, &may_be_empty);
  pcre2_pattern_info(code_->pattern.get(), PCRE2_INFO_MINLENGTH, &n_characters);
  // The library gives up on some patterns and says 0 of them.
  return may_be_empty != 0 ? 0 : std::max<uint32_t>(1, n_characters);
}

}  // namespace longhaul
