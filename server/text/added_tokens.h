// AddedTokens: finds the tokens that stand outside the vocabulary's merges (control tokens and
// other added ones) in a text, the longest at each place. Filled while loading, then read by any
// thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "server/text/unicode.h"

namespace longhaul {

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;  // skipped in decoded text
  bool control =
      false;  // not found in a user's text; special, or by its form or use a control token
  bool lstrip = false;       // takes the whitespace before it
  bool rstrip = false;       // takes the whitespace after it
  bool normalized = false;   // looked for in the normalized text
  bool single_word = false;  // not inside a word
};

class AddedTokens {
 public:
  AddedTokens() : token_at_(1, -1) {}

  void Add(AddedToken token);

  struct Match {
    size_t begin;
    size_t end;
    int32_t id;
  };
  // Matches in order, not overlapping. Whitespace that lstrip and rstrip take belongs to the match.
  std::vector<Match> Find(std::string_view text, bool find_control,
                          const CharClasses& classes) const;

  bool empty() const { return tokens_.empty(); }
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  // Index into tokens_ of the longest token at the start of `text`, or -1.
  int32_t LongestAt(std::string_view text, bool find_control) const;

  std::vector<AddedToken> tokens_;
  std::vector<int32_t> token_at_;  // by node of a trie over bytes, root first: ends here, or -1
  absl::flat_hash_map<uint64_t, int32_t> children_;  // node << 8 | byte
  bool starts_[256] = {};                            // bytes that begin a token
};

}  // namespace longhaul
