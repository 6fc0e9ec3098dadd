// What the files beside the tokenizer say about special tokens: tokenizer_config.json,
// added_tokens.json, generation_config.json and config.json. Plain values, read once while a
// tokenizer loads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "server/text/added_tokens.h"

namespace longhaul {

// The most ids a tokenizer may use; today's largest vocabularies have 256 thousand.
constexpr int32_t kMaxVocab = 1 << 20;
constexpr size_t kMaxToken_bytes = 4096;

struct SpecialConfig {
  std::optional<std::string> bos_token;  // by text, from tokenizer_config.json
  std::optional<std::string> eos_token;
  std::optional<int32_t> bos_id;         // by id, from generation_config.json or config.json
  std::vector<int32_t> eos_ids;          // by id, from both, without duplicates
  std::optional<bool> add_bos;           // add_bos_token
  std::vector<AddedToken> added_tokens;  // added_tokens_decoder and added_tokens.json
};

// Files that are missing say nothing; files that are wrong are errors.
absl::StatusOr<SpecialConfig> ReadSpecialConfig(const std::string& model_dir);

}  // namespace longhaul
