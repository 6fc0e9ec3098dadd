#include "server/text/regex_splitter.h"

#include <fmt/format.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace longhaul {
namespace {

constexpr size_t kMaxPattern_bytes = 16 << 10;
constexpr size_t kJitStack_bytes = 1 << 20;

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
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
using JitStack = std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>>;

}  // namespace

struct RegexSplitter::Code {
  std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>> pattern;
};

RegexSplitter::RegexSplitter(std::string pattern, std::unique_ptr<Code> code)
    : pattern_(std::move(pattern)), code_(std::move(code)) {}
RegexSplitter::~RegexSplitter() = default;

absl::StatusOr<std::unique_ptr<RegexSplitter>> RegexSplitter::Compile(const std::string& pattern) {
  if (pattern.size() > kMaxPattern_bytes) {
    return absl::UnimplementedError(fmt::format("a pattern of {} bytes, at most {} are accepted",
                                                pattern.size(), kMaxPattern_bytes));
  }
  int error = 0;
  PCRE2_SIZE offset = 0;
  // ALT_BSUX: Oniguruma's \uHHHH.
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_ALT_BSUX | PCRE2_NEVER_BACKSLASH_C;
  auto code = std::make_unique<Code>();
  code->pattern.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                    kOptions, &error, &offset, nullptr));
  if (code->pattern == nullptr) {
    return absl::UnimplementedError(fmt::format("the pattern {} does not compile: {} at offset {}",
                                                pattern, ErrorText(error), offset));
  }
  // Without JIT (a hardened kernel may forbid it) pcre2_match interprets: slower, same result.
  pcre2_jit_compile(code->pattern.get(), PCRE2_JIT_COMPLETE);
  return std::unique_ptr<RegexSplitter>(new RegexSplitter(pattern, std::move(code)));
}

absl::Status RegexSplitter::Split(std::string_view text, const std::vector<uint32_t>& pieces,
                                  std::vector<uint32_t>* ends) const {
  const MatchData match(pcre2_match_data_create_from_pattern(code_->pattern.get(), nullptr));
  const MatchContext context(pcre2_match_context_create(nullptr));
  const JitStack stack(pcre2_jit_stack_create(32 << 10, kJitStack_bytes, nullptr));
  if (match == nullptr || context == nullptr || stack == nullptr) {
    return absl::ResourceExhaustedError("no memory for the pre-tokenizer's pattern matcher");
  }
  pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
  uint32_t piece_begin = 0;
  for (const uint32_t piece_end : pieces) {
    const std::string_view piece = text.substr(piece_begin, piece_end - piece_begin);
    size_t done = 0;  // everything before it is in `ends`
    while (done < piece.size()) {
      const int rc = pcre2_match(code_->pattern.get(), reinterpret_cast<PCRE2_SPTR>(piece.data()),
                                 piece.size(), done, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY,
                                 match.get(), context.get());
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
      if (range[0] > done) ends->push_back(piece_begin + static_cast<uint32_t>(range[0]));
      ends->push_back(piece_begin + static_cast<uint32_t>(range[1]));
      done = range[1];
    }
    if (done < piece.size()) ends->push_back(piece_end);
    piece_begin = piece_end;
  }
  return absl::OkStatus();
}

}  // namespace longhaul
