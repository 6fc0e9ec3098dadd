#include "server/text/special_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_set.h"
#include "server/text/json_file.h"

namespace longhaul {
namespace {

using nlohmann::json;

constexpr size_t kMaxEosIds = 64;

// nullopt when there is no such file.
absl::StatusOr<std::optional<json>> ReadOptional(const std::string& path) {
  absl::StatusOr<json> value = ReadJsonFile(path);
  if (value.ok()) return std::optional<json>(*std::move(value));
  if (absl::IsNotFound(value.status())) return std::optional<json>();
  return value.status();
}

// A token by text: "<s>" or {"content": "<s>", ...}.
absl::StatusOr<std::optional<std::string>> TokenText(const JsonFields& fields, const char* key) {
  const json* value = fields.Find(key);
  if (value == nullptr || !value->is_object()) return fields.String(key);
  return fields.Child(key, value).String("content");
}

absl::Status ReadIds(const JsonFields& fields, SpecialConfig* config) {
  LH_ASSIGN_OR_RETURN(const std::optional<int32_t> bos_id, fields.TokenId("bos_token_id"));
  if (!config->bos_id) config->bos_id = bos_id;
  const json* eos = fields.Find("eos_token_id");
  if (eos == nullptr) return absl::OkStatus();
  const json list = eos->is_array() ? *eos : json::array({*eos});
  if (list.size() > kMaxEosIds) {
    return fields.Error("eos_token_id",
                        fmt::format("{} ids, at most {} are accepted", list.size(), kMaxEosIds));
  }
  for (const json& item : list) {
    const std::optional<int32_t> id = AsTokenId(item);
    if (!id) {
      return fields.Error("eos_token_id",
                          "is not a token id (an integer from 0 to 2147483647) or a list of them");
    }
    std::vector<int32_t>& ids = config->eos_ids;
    if (std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(*id);
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokensDecoder(const JsonFields& fields, SpecialConfig* config) {
  LH_ASSIGN_OR_RETURN(const json* decoder, fields.Object("added_tokens_decoder"));
  if (decoder == nullptr) return absl::OkStatus();
  for (const auto& [key, value] : decoder->items()) {
    int32_t id = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || id < 0 ||
        id >= kMaxVocab) {
      return fields.Error("added_tokens_decoder",
                          fmt::format("key \"{}\" is not a token id below {}", key, kMaxVocab));
    }
    if (!value.is_object()) {
      return fields.Error("added_tokens_decoder",
                          fmt::format("\"{}\" is {}, expected an object", key, value.type_name()));
    }
    const JsonFields entry =
        fields.Child("added_tokens_decoder", &value).Child(key.c_str(), &value);
    LH_ASSIGN_OR_RETURN(std::optional<std::string> content, entry.String("content"));
    LH_ASSIGN_OR_RETURN(const std::optional<bool> special, entry.Bool("special"));
    if (!content || content->empty() || content->size() > kMaxToken_bytes) {
      return entry.Error("content",
                         fmt::format("must be a string of 1 to {} bytes", kMaxToken_bytes));
    }
    AddedToken token;
    token.content = *std::move(content);
    token.id = id;
    token.special = special.value_or(false);
    config->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// added_tokens.json of older folders: {"<|im_end|>": 7}. tokenizer_config.json, which says more
// about a token, goes first.
absl::Status ReadAddedTokensFile(const std::string& path, const json& file, SpecialConfig* config) {
  const JsonFields fields(path, "", &file);
  absl::flat_hash_set<int32_t> known;
  for (const AddedToken& token : config->added_tokens) known.insert(token.id);
  for (const auto& [content, value] : file.items()) {
    const std::optional<int32_t> id = AsTokenId(value);
    if (!id || *id >= kMaxVocab) {
      return fields.Error(content, fmt::format("is not a token id below {}", kMaxVocab));
    }
    if (content.empty() || content.size() > kMaxToken_bytes) {
      return fields.Error(
          "", fmt::format("id {} needs a token of 1 to {} bytes", *id, kMaxToken_bytes));
    }
    if (!known.insert(*id).second) continue;
    AddedToken token;
    token.content = content;
    token.id = *id;
    config->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SpecialConfig> ReadSpecialConfig(const std::string& model_dir) {
  SpecialConfig config;
  const std::string tokenizer_path = model_dir + "/tokenizer_config.json";
  LH_ASSIGN_OR_RETURN(const std::optional<json> tokenizer, ReadOptional(tokenizer_path));
  if (tokenizer) {
    const JsonFields fields(tokenizer_path, "", &*tokenizer);
    LH_ASSIGN_OR_RETURN(config.bos_token, TokenText(fields, "bos_token"));
    LH_ASSIGN_OR_RETURN(config.eos_token, TokenText(fields, "eos_token"));
    LH_ASSIGN_OR_RETURN(config.add_bos, fields.Bool("add_bos_token"));
    LH_RETURN_IF_ERROR(ReadAddedTokensDecoder(fields, &config));
  }
  const std::string added_path = model_dir + "/added_tokens.json";
  LH_ASSIGN_OR_RETURN(const std::optional<json> added, ReadOptional(added_path));
  if (added) LH_RETURN_IF_ERROR(ReadAddedTokensFile(added_path, *added, &config));
  for (const char* name : {"/generation_config.json", "/config.json"}) {
    const std::string path = model_dir + name;
    LH_ASSIGN_OR_RETURN(const std::optional<json> value, ReadOptional(path));
    if (value) LH_RETURN_IF_ERROR(ReadIds(JsonFields(path, "", &*value), &config));
  }
  return config;
}

}  // namespace longhaul
