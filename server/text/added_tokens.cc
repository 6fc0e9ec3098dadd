#include "server/text/added_tokens.h"

namespace longhaul {
namespace {

uint64_t ChildKey(int32_t node, char byte) {
  return static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte);
}

}  // namespace

void AddedTokens::Add(AddedToken token) {
  if (token.content.empty()) return;
  int32_t node = 0;
  for (const char byte : token.content) {
    const auto [child, is_new] =
        children_.try_emplace(ChildKey(node, byte), static_cast<int32_t>(token_at_.size()));
    node = child->second;
    if (is_new) token_at_.push_back(-1);
  }
  token_at_[node] = static_cast<int32_t>(tokens_.size());
  starts_[static_cast<uint8_t>(token.content[0])] = true;
  tokens_.push_back(std::move(token));
}

int32_t AddedTokens::LongestAt(std::string_view text, bool find_control) const {
  int32_t node = 0, longest = -1;
  for (const char byte : text) {
    const auto child = children_.find(ChildKey(node, byte));
    if (child == children_.end()) break;
    node = child->second;
    const int32_t token = token_at_[node];
    if (token >= 0 && (find_control || !tokens_[token].control)) longest = token;
  }
  return longest;
}

namespace {

bool StandsAlone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    const char* p = text.data() + begin;
    if (IsWordChar(DecodeUtf8(p - LastCharLength(p)).code_point)) return false;
  }
  return end == text.size() || !IsWordChar(DecodeUtf8(text.data() + end).code_point);
}

}  // namespace

std::vector<AddedTokens::Match> AddedTokens::Find(std::string_view text, bool find_control,
                                                  const CharClasses& classes) const {
  std::vector<Match> matches;
  if (tokens_.empty()) return matches;
  const auto is_space = [&classes](const char* p) {
    return (classes[DecodeUtf8(p).code_point] & CharClasses::kSpace) != 0;
  };
  size_t done = 0;
  for (size_t i = 0; i < text.size();) {
    const int32_t index =
        starts_[static_cast<uint8_t>(text[i])] ? LongestAt(text.substr(i), find_control) : -1;
    if (index < 0) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = i, end = i + token.content.size();
    if (token.single_word && !StandsAlone(text, begin, end)) {
      i = end;
      continue;
    }
    while (token.lstrip && begin > done) {
      const size_t before = begin - LastCharLength(text.data() + begin);
      if (!is_space(text.data() + before)) break;
      begin = before;
    }
    while (token.rstrip && end < text.size() && is_space(text.data() + end)) {
      end += DecodeUtf8(text.data() + end).length;
    }
    matches.push_back({begin, end, token.id});
    done = i = end;
  }
  return matches;
}

}  // namespace longhaul
