// Python's str methods on UTF-8 text: positions and lengths count characters, cases and white space
// are Unicode's. Pure functions of valid UTF-8; any thread. Results have at most a few times the
// size of their input, except Replace, whose caller bounds it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::jinja {

// str.strip() and friends, of white space.
std::string_view StripLeft(std::string_view text);
std::string_view StripRight(std::string_view text);
inline std::string_view Strip(std::string_view text) { return StripLeft(StripRight(text)); }
// The same of any of the characters of `chars`.
std::string_view StripCharsLeft(std::string_view text, std::string_view chars);
std::string_view StripCharsRight(std::string_view text, std::string_view chars);

int64_t CountChars(std::string_view text);
// Byte offset of a character; index from 0 to the number of characters.
size_t OffsetOfChar(std::string_view text, int64_t index);
std::vector<std::string_view> Chars(std::string_view text);

// What a Python slice of a sequence of `length` selects: `count` items from `begin` in steps.
struct SliceRange {
  int64_t begin = 0, step = 1, count = 0;
};
SliceRange ResolveSlice(std::optional<int64_t> begin, std::optional<int64_t> end, int64_t step,
                        int64_t length);
std::string SliceChars(std::string_view text, std::optional<int64_t> begin,
                       std::optional<int64_t> end, int64_t step);

std::string ToUpper(std::string_view text);
std::string ToLower(std::string_view text);
// str.title() and str.capitalize().
std::string ToTitle(std::string_view text);
std::string Capitalize(std::string_view text);
// The filter `title`: a capital after white space and -([{<, small letters else.
std::string TitleWords(std::string_view text);

// max_splits -1: all. Without a separator: at runs of white space, none at the ends.
std::vector<std::string_view> Split(std::string_view text, std::string_view separator,
                                    int64_t max_splits);
std::vector<std::string_view> SplitRight(std::string_view text, std::string_view separator,
                                         int64_t max_splits);
std::vector<std::string_view> SplitSpace(std::string_view text, int64_t max_splits);
std::vector<std::string_view> SplitSpaceRight(std::string_view text, int64_t max_splits);
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);

// Occurrences that do not overlap; of "": the places between characters.
int64_t CountOccurrences(std::string_view text, std::string_view what);
// The first `count` occurrences; -1: all.
std::string Replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t count);

enum class CharTest : uint8_t { kAlpha, kDigit, kAlnum, kSpace, kLower, kUpper };
bool TestChars(std::string_view text, CharTest test);
// The filter `wordcount`: runs of letters, digits and '_'.
int64_t CountWords(std::string_view text);

// Python's repr(): quotes chosen and escapes written as Python does.
void AppendRepr(std::string_view text, std::string* out);

}  // namespace longhaul::jinja
