#include "server/text/hf_tokenizer_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace longhaul {
namespace {

using nlohmann::json;

constexpr size_t kMaxSteps = 16;                        // of a normalizer or pre-tokenizer Sequence
constexpr size_t kMaxPrefix = 16;                       // tokens of a template before the text
constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581, sentencepiece's space

}  // namespace

std::string HfTypeOf(const JsonFields& fields) {
  const json* type = fields.Find("type");
  return type != nullptr && type->is_string() ? type->get<std::string>() : "";
}

absl::Status HfUnsupported(const JsonFields& fields, std::string_view key, std::string_view what) {
  return absl::UnimplementedError(std::string(fields.Error(key, what).message()));
}

absl::Status HfTokenizerReader::ForEachStep(
    const char* key, const char* list,
    const std::function<absl::Status(const JsonFields&)>& read) const {
  LH_ASSIGN_OR_RETURN(const json* component, root_.Object(key));
  if (component == nullptr) return absl::OkStatus();
  const JsonFields fields = root_.Child(key, component);
  if (HfTypeOf(fields) != "Sequence") return read(fields);
  LH_ASSIGN_OR_RETURN(const json* steps, fields.Array(list));
  if (steps == nullptr || steps->size() > kMaxSteps) {
    return fields.Error(list, fmt::format("must be an array of at most {} steps", kMaxSteps));
  }
  for (const json& step : *steps) {
    if (!step.is_object()) return fields.Error(list, "has a step that is not an object");
    LH_RETURN_IF_ERROR(read(fields.Child(list, &step)));
  }
  return absl::OkStatus();
}

absl::Status HfTokenizerReader::ReadAddedTokens() {
  LH_ASSIGN_OR_RETURN(const json* list, root_.Array("added_tokens"));
  if (list == nullptr) return absl::OkStatus();
  if (list->size() > static_cast<size_t>(kMaxVocab)) {
    return root_.Error("added_tokens", fmt::format("has {} entries, at most {} are accepted",
                                                   list->size(), kMaxVocab));
  }
  for (const json& item : *list) {
    if (!item.is_object()) return root_.Error("added_tokens", "has an entry that is not an object");
    LH_ASSIGN_OR_RETURN(AddedToken token, ReadAddedToken(root_.Child("added_tokens", &item)));
    const auto in_vocab = vocab_.find(token.content);
    if (in_vocab != vocab_.end() && in_vocab->second != token.id) {
      return root_.Error("added_tokens", fmt::format("\"{}\" has id {}, in the vocabulary {}",
                                                     token.content, token.id, in_vocab->second));
    }
    spec_.added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::StatusOr<AddedToken> HfTokenizerReader::ReadAddedToken(const JsonFields& entry) {
  LH_ASSIGN_OR_RETURN(std::optional<std::string> content, entry.String("content"));
  LH_ASSIGN_OR_RETURN(const std::optional<int32_t> id, entry.TokenId("id"));
  if (!content || content->empty() || content->size() > kMaxToken_bytes) {
    return entry.Error("content",
                       fmt::format("must be a string of 1 to {} bytes", kMaxToken_bytes));
  }
  if (!id || *id >= kMaxVocab) {
    return entry.Error("id",
                       fmt::format("of \"{}\" must be from 0 to {}", *content, kMaxVocab - 1));
  }
  AddedToken token;
  token.content = *std::move(content);
  token.id = *id;
  for (const auto& [key, flag] : {std::pair<const char*, bool*>{"special", &token.special},
                                  {"lstrip", &token.lstrip},
                                  {"rstrip", &token.rstrip},
                                  {"normalized", &token.normalized},
                                  {"single_word", &token.single_word}}) {
    LH_ASSIGN_OR_RETURN(const std::optional<bool> value, entry.Bool(key));
    *flag = value.value_or(false);
  }
  // After Prepend and Replace a token's own text would have to be changed too; Hugging Face's
  // converters set normalized there without meaning it.
  for (const NormalizerStep& step : spec_.normalizer) {
    if (step.kind != NormalizerStep::kForm) token.normalized = false;
  }
  return token;
}

absl::Status HfTokenizerReader::ReadPostProcessor() {
  return ForEachStep("post_processor", "processors", [this](const JsonFields& fields) {
    const std::string type = HfTypeOf(fields);
    if (type == "ByteLevel") return absl::OkStatus();  // offsets only
    if (type == "TemplateProcessing") return ReadTemplate(fields);
    return HfUnsupported(fields, "type",
                         fmt::format("post-processor \"{}\" is not supported; supported are "
                                     "TemplateProcessing, ByteLevel and Sequence",
                                     type));
  });
}

// Only what comes before the text matters: a prompt is continued, so nothing is put after it.
absl::Status HfTokenizerReader::ReadTemplate(const JsonFields& fields) {
  LH_ASSIGN_OR_RETURN(const json* single, fields.Array("single"));
  if (single == nullptr) return fields.Error("single", "is missing");
  for (const json& item : *single) {
    if (!item.is_object()) return fields.Error("single", "has an entry that is not an object");
    if (item.contains("Sequence")) return absl::OkStatus();
    LH_ASSIGN_OR_RETURN(const json* token, fields.Child("single", &item).Object("SpecialToken"));
    if (token == nullptr) return fields.Error("single", "has neither Sequence nor SpecialToken");
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> name,
                        fields.Child("single", token).String("id"));
    const int32_t id = name ? IdOf(*name) : -1;
    if (id < 0) {
      return fields.Error("single", fmt::format("token \"{}\" does not exist", name.value_or("")));
    }
    if (spec_.prefix_ids.size() == kMaxPrefix) {
      return fields.Error("single",
                          fmt::format("has more than {} tokens before the text", kMaxPrefix));
    }
    if (spec_.prefix_ids.empty()) spec_.bos_id = id;
    spec_.prefix_ids.push_back(id);
  }
  return absl::OkStatus();
}

int32_t HfTokenizerReader::IdOf(const std::string& token) const {
  for (const AddedToken& added : spec_.added) {
    if (added.content == token) return added.id;
  }
  const auto found = vocab_.find(token);
  return found == vocab_.end() ? -1 : found->second;
}

absl::Status HfTokenizerReader::FindBosAndEos() {
  if (spec_.prefix_ids.empty()) {  // else the template has said which
    if (config_.bos_token) spec_.bos_id = IdOf(*config_.bos_token);
    if (spec_.bos_id < 0 && !config_.bos_token && config_.bos_id &&
        static_cast<size_t>(*config_.bos_id) < spec_.token_bytes.size()) {
      spec_.bos_id = *config_.bos_id;
    }
    const bool has_post_processor = root_.Find("post_processor") != nullptr;
    if (!has_post_processor && config_.add_bos.value_or(false) && spec_.bos_id >= 0) {
      spec_.prefix_ids = {spec_.bos_id};
    }
  }
  spec_.eos_ids = config_.eos_ids;
  if (config_.eos_token) {
    const int32_t id = IdOf(*config_.eos_token);
    if (id < 0) {
      return absl::InvalidArgumentError(
          fmt::format("tokenizer_config.json: eos_token: \"{}\" is not a token of the tokenizer",
                      *config_.eos_token));
    }
    std::vector<int32_t>& ids = spec_.eos_ids;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return absl::OkStatus();
}

absl::Status HfTokenizerReader::FinishTokens() {
  for (const AddedToken& token : spec_.added) {
    const size_t n = std::max<size_t>(spec_.token_bytes.size(), token.id + 1);
    spec_.token_bytes.resize(n);
  }
  spec_.token_names.resize(spec_.token_bytes.size());
  LH_RETURN_IF_ERROR(ReadPostProcessor());
  LH_RETURN_IF_ERROR(FindBosAndEos());
  if (!spec_.bpe.byte_symbols) {
    for (std::string& bytes : spec_.token_bytes) {
      for (size_t at = 0; (at = bytes.find(kWordMark, at)) != std::string::npos;) {
        bytes.replace(at, kWordMark.size(), " ");
      }
    }
  }
  std::vector<bool> is_merge_result(spec_.token_bytes.size());
  for (const BpeSpec::Merge& merge : spec_.bpe.merges) is_merge_result[merge.result] = true;
  for (AddedToken& token : spec_.added) {
    const std::vector<int32_t>& eos = spec_.eos_ids;
    const bool is_marker = token.content.starts_with("<|") && token.content.ends_with("|>");
    token.control = token.special || is_marker || token.id == spec_.bos_id ||
                    std::find(eos.begin(), eos.end(), token.id) != eos.end();
    spec_.token_names[token.id] = token.content;
    spec_.token_bytes[token.id] = token.special ? "" : token.content;
    // A control token that the vocabulary lists too must not come out of text that spells it.
    const bool in_vocab = static_cast<size_t>(token.id) < spec_.bpe.tokens.size();
    if (token.control && in_vocab && !is_merge_result[token.id]) spec_.bpe.tokens[token.id].clear();
  }
  spec_.drops_first_space = prepends_mark_;
  return absl::OkStatus();
}

absl::StatusOr<HfTokenizerSpec> HfTokenizerReader::Read() {
  spec_.bpe.byte_symbols = false;  // until a ByteLevel pre-tokenizer is met
  LH_RETURN_IF_ERROR(ReadNormalizer());
  LH_RETURN_IF_ERROR(ReadPreTokenizer());
  LH_RETURN_IF_ERROR(ReadModel());
  LH_RETURN_IF_ERROR(ReadAddedTokens());
  LH_RETURN_IF_ERROR(FinishTokens());
  return std::move(spec_);
}

absl::StatusOr<HfTokenizerSpec> ReadHfTokenizer(const std::string& path, std::string_view json_text,
                                                const SpecialConfig& config) {
  LH_ASSIGN_OR_RETURN(const json root, ParseJson(path, json_text));
  if (!root.is_object()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the top level is {}, expected an object", path, root.type_name()));
  }
  return HfTokenizerReader(path, root, config).Read();
}

}  // namespace longhaul
