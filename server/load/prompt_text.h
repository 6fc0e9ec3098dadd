// PromptText: English-like prompts of a wanted length. Every prompt opens with words of its own, so
// no prefix cache helps unless the same prompt is sent again; and it ends by asking for a code of
// three-digit groups that stands in it, so that a model has an answer of a known length to give.
// All words are single tokens of models/lookup, which answers such codes exactly. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <string>

namespace longhaul::load {

struct Prompt {
  std::string text;
  std::string code;  // what the answer should begin with
};

class PromptText {
 public:
  // The shortest prompt: opening, code and question of an answer of `n_answer` tokens.
  static int64_t MinTokens(int64_t n_answer);
  static constexpr int64_t kMaxCodeGroups = 256;

  // `seed` decides lengths and texts, `run_id` the opening words: two runs share no prefix.
  PromptText(uint64_t seed, uint64_t run_id) : random_(seed), run_id_(run_id) {}

  // Set once it is measured; until then a word is a token, and so is a full stop.
  void SetTokensPerPiece(double tokens_per_piece) { tokens_per_piece_ = tokens_per_piece; }

  // A new prompt of about `n_tokens` with a code of min(n_answer, kMaxCodeGroups) groups.
  Prompt Make(int64_t n_tokens, int64_t n_answer);

  // Plain sentences of exactly `n_pieces` words and full stops; the same for the same n_pieces.
  // At least 4 pieces.
  const std::string& Filler(int64_t n_pieces);

 private:
  std::string Opening();
  std::string Code(int64_t n_groups);
  std::string MakeFiller(int64_t n_pieces);

  std::mt19937_64 random_;
  const uint64_t run_id_;
  uint64_t n_prompts_ = 0;
  double tokens_per_piece_ = 1;
  std::map<int64_t, std::string> fillers_;  // by n_pieces: made once, they may be long
};

}  // namespace longhaul::load
