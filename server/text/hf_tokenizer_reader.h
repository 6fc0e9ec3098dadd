// HfTokenizerReader: tokenizer.json to HfTokenizerSpec. Every field that changes ids is honoured or
// refused by name. Used once, by ReadHfTokenizer; keeps pointers into the JSON document. What it
// reads is spread over hf_reader_text.cc (normalizer, pre-tokenizer), hf_reader_model.cc
// (vocabulary, merges) and hf_tokenizer_reader.cc (added tokens, post-processor).
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "server/text/hf_tokenizer.h"
#include "server/text/json_file.h"

namespace longhaul {

class HfTokenizerReader {
 public:
  HfTokenizerReader(const std::string& path, const nlohmann::json& root,
                    const SpecialConfig& config)
      : root_(path, "", &root), config_(config) {}

  absl::StatusOr<HfTokenizerSpec> Read();

 private:
  absl::Status ReadNormalizer();
  absl::Status ReadNormalizerStep(const JsonFields& fields);
  absl::Status ReadPreTokenizer();
  absl::Status ReadPreTokenizerStep(const JsonFields& fields);
  absl::Status ReadSplit(const JsonFields& fields);
  absl::Status ReadMetaspace(const JsonFields& fields);
  absl::Status ReadModel();
  absl::Status ReadVocab(const JsonFields& model);
  absl::Status ReadMerges(const JsonFields& model);
  absl::StatusOr<BpeSpec::Merge> ReadMerge(const JsonFields& model, size_t rank,
                                           const nlohmann::json& item);
  absl::Status FindByteTokens(const JsonFields& model);
  absl::Status ReadAddedTokens();
  absl::StatusOr<AddedToken> ReadAddedToken(const JsonFields& entry);
  absl::Status ReadPostProcessor();
  absl::Status ReadTemplate(const JsonFields& fields);
  absl::Status FinishTokens();
  absl::Status FindBosAndEos();
  int32_t IdOf(const std::string& token) const;  // vocabulary and added tokens; -1: none

  // Calls read(step) for a component that is one object or a Sequence under `list`.
  absl::Status ForEachStep(const char* key, const char* list,
                           const std::function<absl::Status(const JsonFields&)>& read) const;

  JsonFields root_;
  const SpecialConfig& config_;
  HfTokenizerSpec spec_;
  absl::flat_hash_map<std::string_view, int32_t> vocab_;  // keys point into the JSON document
  std::vector<std::string_view> names_;                   // by id
  bool prepends_mark_ = false;
};

// "type" of a component; empty when it has none.
std::string HfTypeOf(const JsonFields& fields);

// Unimplemented, with the text of JsonFields::Error.
absl::Status HfUnsupported(const JsonFields& fields, std::string_view key, std::string_view what);

}  // namespace longhaul
