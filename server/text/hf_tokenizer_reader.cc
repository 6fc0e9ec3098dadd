// tokenizer.json to HfTokenizerSpec: every field that changes ids is honoured or refused by name.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "server/text/detokenizer.h"
#include "server/text/hf_tokenizer.h"
#include "server/text/json_file.h"

namespace longhaul {
namespace {

using nlohmann::json;

constexpr size_t kMaxMerges = 1 << 22;
constexpr size_t kMaxSteps = 16;                        // of a normalizer or pre-tokenizer Sequence
constexpr size_t kMaxPrefix = 16;                       // tokens of a template before the text
constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581, sentencepiece's space

using VocabIds = absl::flat_hash_map<std::string_view, int32_t>;

// GPT-2's spelling of bytes as characters: printable Latin-1 as itself, the rest from U+0100 on.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    byte_of_.fill(-1);
    int32_t next = 0x100;
    for (int32_t byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
      byte_of_[printable ? byte : next++] = byte;
    }
  }

  // The bytes that a token stands for, or nullopt when it is not spelled in this alphabet.
  std::optional<std::string> Decode(std::string_view token) const {
    std::string bytes;
    for (size_t i = 0; i < token.size();) {
      const Utf8Char c = DecodeUtf8(token.data() + i);
      if (c.code_point >= byte_of_.size() || byte_of_[c.code_point] < 0) return std::nullopt;
      bytes.push_back(static_cast<char>(byte_of_[c.code_point]));
      i += c.length;
    }
    return bytes;
  }

 private:
  std::array<int32_t, 0x200> byte_of_;
};

class Reader {
 public:
  Reader(const std::string& path, const json& root, const SpecialConfig& config)
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
  absl::StatusOr<BpeSpec::Merge> ReadMerge(const JsonFields& model, size_t rank, const json& item);
  absl::Status FindByteTokens(const JsonFields& model);
  absl::Status ReadAddedTokens();
  absl::StatusOr<AddedToken> ReadAddedToken(const JsonFields& entry);
  absl::Status ReadPostProcessor();
  absl::Status ReadTemplate(const JsonFields& fields);
  absl::Status FinishTokens();
  absl::Status FindBosAndEos();
  int32_t IdOf(const std::string& token) const;  // vocabulary and added tokens; -1: none

  // Calls read(step) for a component that is one object or a Sequence under `list`.
  template <typename ReadStep>
  absl::Status ForEachStep(const char* key, const char* list, ReadStep read);

  JsonFields root_;
  const SpecialConfig& config_;
  HfTokenizerSpec spec_;
  VocabIds vocab_;                       // keys point into the JSON document
  std::vector<std::string_view> names_;  // by id
  bool prepends_mark_ = false;
};

std::string TypeOf(const JsonFields& fields) {
  const json* type = fields.Find("type");
  return type != nullptr && type->is_string() ? type->get<std::string>() : "";
}

absl::Status Unsupported(const JsonFields& fields, std::string_view key, std::string_view what) {
  return absl::UnimplementedError(std::string(fields.Error(key, what).message()));
}

std::optional<SplitBehavior> BehaviorOf(std::string_view name, bool invert) {
  if (name == "Removed") {
    return invert ? SplitBehavior::kOthersRemoved : SplitBehavior::kRemoved;
  }
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return std::nullopt;
}

// A pattern that matches `literal` and nothing else.
std::string EscapedLiteral(std::string_view literal) {
  std::string pattern;
  for (const char c : literal) {
    if (std::ispunct(static_cast<unsigned char>(c))) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return pattern;
}

template <typename ReadStep>
absl::Status Reader::ForEachStep(const char* key, const char* list, ReadStep read) {
  LH_ASSIGN_OR_RETURN(const json* component, root_.Object(key));
  if (component == nullptr) return absl::OkStatus();
  const JsonFields fields = root_.Child(key, component);
  if (TypeOf(fields) != "Sequence") return read(fields);
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

absl::Status Reader::ReadNormalizer() {
  return ForEachStep("normalizer", "normalizers",
                     [this](const JsonFields& fields) { return ReadNormalizerStep(fields); });
}

absl::Status Reader::ReadNormalizerStep(const JsonFields& fields) {
  const std::string type = TypeOf(fields);
  for (const auto& [name, form] : {std::pair<std::string_view, NormalForm>{"NFC", NormalForm::kNfc},
                                   {"NFD", NormalForm::kNfd},
                                   {"NFKC", NormalForm::kNfkc},
                                   {"NFKD", NormalForm::kNfkd}}) {
    if (type != name) continue;
    spec_.normalizer.push_back({.kind = NormalizerStep::kForm, .form = form});
    return absl::OkStatus();
  }
  if (type == "Lowercase") {
    spec_.normalizer.push_back({.kind = NormalizerStep::kLowercase});
    return absl::OkStatus();
  }
  if (type == "Strip") {
    LH_ASSIGN_OR_RETURN(const std::optional<bool> left, fields.Bool("strip_left"));
    LH_ASSIGN_OR_RETURN(const std::optional<bool> right, fields.Bool("strip_right"));
    spec_.normalizer.push_back({.kind = NormalizerStep::kStrip,
                                .strip_left = left.value_or(true),
                                .strip_right = right.value_or(true)});
    return absl::OkStatus();
  }
  if (type == "Prepend") {
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> text, fields.String("prepend"));
    if (!text || text->size() > kMaxToken_bytes) return fields.Error("prepend", "must be a string");
    spec_.normalizer.push_back({.kind = NormalizerStep::kPrepend, .to = *text});
    if (*text == kWordMark) prepends_mark_ = true;
    return absl::OkStatus();
  }
  if (type == "Replace") {
    LH_ASSIGN_OR_RETURN(const json* pattern, fields.Object("pattern"));
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> to, fields.String("content"));
    if (pattern == nullptr || !to) return fields.Error("", "Replace needs pattern and content");
    const JsonFields inner = fields.Child("pattern", pattern);
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> from, inner.String("String"));
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> regex, inner.String("Regex"));
    if (!from && !regex) return inner.Error("", "needs Regex or String");
    NormalizerStep step{.kind = NormalizerStep::kReplace, .from = from.value_or(""), .to = *to};
    if (!from) {
      absl::StatusOr<std::unique_ptr<RegexSplitter>> compiled = RegexSplitter::Compile(*regex);
      if (!compiled.ok()) {
        return Unsupported(inner, "Regex", std::string(compiled.status().message()));
      }
      step.pattern = *std::move(compiled);
    }
    const size_t n_from = from ? from->size() : step.pattern->MinMatch_bytes();
    if (n_from == 0) return Unsupported(fields, "pattern", "may match an empty text");
    // The text may grow by the factor that offsets leave room for.
    if (to->size() > 3 * n_from) {
      return Unsupported(fields, "content",
                         "must be at most three times as long as what the pattern matches");
    }
    spec_.normalizer.push_back(std::move(step));
    return absl::OkStatus();
  }
  return Unsupported(
      fields, "type",
      fmt::format("normalizer \"{}\" is not supported; supported are NFC, NFD, NFKC, "
                  "NFKD, Lowercase, Strip, Prepend, Replace and Sequence",
                  type));
}

absl::Status Reader::ReadPreTokenizer() {
  return ForEachStep("pre_tokenizer", "pretokenizers",
                     [this](const JsonFields& fields) { return ReadPreTokenizerStep(fields); });
}

absl::Status Reader::ReadPreTokenizerStep(const JsonFields& fields) {
  const std::string type = TypeOf(fields);
  if (spec_.bpe.byte_symbols) {
    return Unsupported(fields, "type",
                       fmt::format("\"{}\" after ByteLevel is not supported", type));
  }
  if (type == "Split") return ReadSplit(fields);
  if (type == "Metaspace") return ReadMetaspace(fields);
  if (type == "Digits") {
    LH_ASSIGN_OR_RETURN(const std::optional<bool> single, fields.Bool("individual_digits"));
    return spec_.pretokenizer.AddPattern(single.value_or(false) ? "\\p{N}" : "\\p{N}+");
  }
  if (type == "ByteLevel") {
    spec_.bpe.byte_symbols = true;
    LH_ASSIGN_OR_RETURN(const std::optional<bool> use_regex, fields.Bool("use_regex"));
    LH_ASSIGN_OR_RETURN(const std::optional<bool> prefix, fields.Bool("add_prefix_space"));
    spec_.add_prefix_space = prefix.value_or(true);
    if (spec_.add_prefix_space && spec_.pretokenizer.n_steps() > 0) {
      return Unsupported(fields, "add_prefix_space", "true is not supported after a Split");
    }
    if (!use_regex.value_or(true)) return absl::OkStatus();
    return spec_.pretokenizer.AddPattern(std::string(kGpt2Pattern));
  }
  return Unsupported(
      fields, "type",
      fmt::format("pre-tokenizer \"{}\" is not supported; supported are Split, Digits, ByteLevel, "
                  "Metaspace and Sequence",
                  type));
}

absl::Status Reader::ReadSplit(const JsonFields& fields) {
  LH_ASSIGN_OR_RETURN(const json* pattern, fields.Object("pattern"));
  if (pattern == nullptr) return fields.Error("pattern", "is missing");
  const JsonFields inner = fields.Child("pattern", pattern);
  LH_ASSIGN_OR_RETURN(std::optional<std::string> regex, inner.String("Regex"));
  LH_ASSIGN_OR_RETURN(const std::optional<std::string> literal, inner.String("String"));
  LH_ASSIGN_OR_RETURN(const std::optional<std::string> behavior, fields.String("behavior"));
  if (!regex && !literal) return inner.Error("", "needs Regex or String");
  LH_ASSIGN_OR_RETURN(const std::optional<bool> invert, fields.Bool("invert"));
  const std::optional<SplitBehavior> known =
      BehaviorOf(behavior.value_or(""), invert.value_or(false));
  if (!known) {
    return Unsupported(fields, "behavior",
                       fmt::format("\"{}\" is not supported; supported are Isolated, Contiguous, "
                                   "MergedWithPrevious, MergedWithNext and Removed",
                                   behavior.value_or("")));
  }
  const bool is_merged =
      known == SplitBehavior::kMergedWithPrevious || known == SplitBehavior::kMergedWithNext;
  if (invert.value_or(false) && is_merged) {
    return Unsupported(fields, "invert",
                       fmt::format("true is not supported with \"{}\"", *behavior));
  }
  if (!regex) regex = EscapedLiteral(*literal);
  const absl::Status status = spec_.pretokenizer.AddPattern(*regex, *known);
  if (status.ok()) return status;
  return Unsupported(inner, "Regex", std::string(status.message()));
}

absl::Status Reader::ReadMetaspace(const JsonFields& fields) {
  LH_ASSIGN_OR_RETURN(const std::optional<std::string> mark, fields.String("replacement"));
  LH_ASSIGN_OR_RETURN(const std::optional<std::string> scheme, fields.String("prepend_scheme"));
  LH_ASSIGN_OR_RETURN(const std::optional<bool> add_prefix, fields.Bool("add_prefix_space"));
  LH_ASSIGN_OR_RETURN(const std::optional<bool> split, fields.Bool("split"));
  if (mark != kWordMark) return Unsupported(fields, "replacement", "only \"\u2581\" is supported");
  if (spec_.pretokenizer.n_steps() > 0 || !spec_.metaspace.mark.empty()) {
    return Unsupported(fields, "type", "Metaspace after another pre-tokenizer is not supported");
  }
  Metaspace& metaspace = spec_.metaspace;
  metaspace.mark = *mark;
  metaspace.split = split.value_or(true);
  if (scheme == "always" || (!scheme && add_prefix.value_or(true))) {
    metaspace.prepend = Metaspace::Prepend::kAlways;
  } else if (scheme == "first") {
    metaspace.prepend = Metaspace::Prepend::kFirst;
  } else if (scheme && scheme != "never") {
    return fields.Error("prepend_scheme",
                        fmt::format("\"{}\" is none of always, first, never", *scheme));
  }
  prepends_mark_ = metaspace.prepend != Metaspace::Prepend::kNever;
  return absl::OkStatus();
}

absl::Status Reader::ReadModel() {
  LH_ASSIGN_OR_RETURN(const json* object, root_.Object("model"));
  if (object == nullptr) return root_.Error("model", "is missing");
  const JsonFields model = root_.Child("model", object);
  // Files of before 2020 have no type; they have merges.
  const std::string type = TypeOf(model);
  if (type != "BPE" && !(type.empty() && model.Find("merges") != nullptr)) {
    return Unsupported(model, "type", fmt::format("\"{}\" is not supported, only BPE is", type));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> text, model.String(key));
    if (text && !text->empty()) return Unsupported(model, key, "is not supported");
  }
  if (const json* dropout = model.Find("dropout"); dropout != nullptr && *dropout != 0) {
    return Unsupported(model, "dropout", "is for training; remove it");
  }
  LH_ASSIGN_OR_RETURN(const std::optional<bool> ignore_merges, model.Bool("ignore_merges"));
  LH_ASSIGN_OR_RETURN(const std::optional<bool> fuse_unk, model.Bool("fuse_unk"));
  LH_ASSIGN_OR_RETURN(const std::optional<bool> byte_fallback, model.Bool("byte_fallback"));
  LH_ASSIGN_OR_RETURN(const std::optional<std::string> unk, model.String("unk_token"));
  spec_.bpe.ignore_merges = ignore_merges.value_or(false);
  spec_.bpe.fuse_unk = fuse_unk.value_or(false);
  LH_RETURN_IF_ERROR(ReadVocab(model));
  if (unk) {
    const auto found = vocab_.find(*unk);
    if (found == vocab_.end()) {
      return model.Error("unk_token", fmt::format("\"{}\" is not in the vocabulary", *unk));
    }
    spec_.bpe.unk_id = found->second;
  }
  spec_.bpe.byte_ids.fill(-1);
  if (byte_fallback.value_or(false) && !spec_.bpe.byte_symbols) {
    LH_RETURN_IF_ERROR(FindByteTokens(model));
  }
  return ReadMerges(model);
}

absl::Status Reader::ReadVocab(const JsonFields& model) {
  LH_ASSIGN_OR_RETURN(const json* vocab, model.Object("vocab"));
  if (vocab == nullptr || vocab->empty()) return model.Error("vocab", "is missing or empty");
  if (vocab->size() > static_cast<size_t>(kMaxVocab)) {
    return model.Error(
        "vocab", fmt::format("has {} tokens, at most {} are accepted", vocab->size(), kMaxVocab));
  }
  vocab_.reserve(vocab->size());
  for (const auto& [token, value] : vocab->get_ref<const json::object_t&>()) {
    const std::optional<int32_t> id = AsTokenId(value);
    if (!id || *id >= kMaxVocab) {
      return model.Error("vocab",
                         fmt::format("\"{}\" has no id from 0 to {}", token, kMaxVocab - 1));
    }
    if (token.size() > kMaxToken_bytes) {
      return model.Error("vocab", fmt::format("token {} has {} bytes, at most {} are accepted", *id,
                                              token.size(), kMaxToken_bytes));
    }
    if (static_cast<size_t>(*id) >= names_.size()) names_.resize(*id + 1);
    if (names_[*id].data() != nullptr) {
      return model.Error(
          "vocab", fmt::format("id {} belongs to \"{}\" and to \"{}\"", *id, names_[*id], token));
    }
    names_[*id] = token;
    vocab_[token] = *id;
  }
  const ByteAlphabet alphabet;
  spec_.bpe.tokens.resize(names_.size());
  spec_.token_bytes.resize(names_.size());
  for (size_t id = 0; id < names_.size(); ++id) {
    const std::optional<std::string> bytes =
        spec_.bpe.byte_symbols ? alphabet.Decode(names_[id]) : std::string(names_[id]);
    // A token outside the alphabet cannot come out of a text, but a model may still write it.
    if (bytes) spec_.bpe.tokens[id] = *bytes;
    spec_.token_bytes[id] = bytes.value_or(std::string(names_[id]));
  }
  return absl::OkStatus();
}

absl::Status Reader::FindByteTokens(const JsonFields& model) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string name = fmt::format("<0x{:02X}>", byte);
    const auto found = vocab_.find(name);
    if (found == vocab_.end()) {
      return model.Error("byte_fallback", fmt::format("is on, but token {} is missing", name));
    }
    spec_.bpe.byte_ids[byte] = found->second;
    spec_.bpe.tokens[found->second].clear();  // not a text's own "<0x41>"
    spec_.token_bytes[found->second] = std::string(1, static_cast<char>(byte));
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadMerges(const JsonFields& model) {
  LH_ASSIGN_OR_RETURN(const json* merges, model.Array("merges"));
  if (merges == nullptr) return model.Error("merges", "is missing");
  if (merges->size() > kMaxMerges) {
    return model.Error("merges", fmt::format("has {} entries, at most {} are accepted",
                                             merges->size(), kMaxMerges));
  }
  spec_.bpe.merges.reserve(merges->size());
  for (size_t rank = 0; rank < merges->size(); ++rank) {
    LH_ASSIGN_OR_RETURN(const BpeSpec::Merge merge, ReadMerge(model, rank, (*merges)[rank]));
    spec_.bpe.merges.push_back(merge);
  }
  return absl::OkStatus();
}

absl::StatusOr<BpeSpec::Merge> Reader::ReadMerge(const JsonFields& model, size_t rank,
                                                 const json& item) {
  const auto error = [&](std::string_view what) {
    return model.Error("merges", fmt::format("entry {} {}", rank, what));
  };
  std::string_view left, right;
  if (item.is_string()) {
    const std::string_view pair = item.get_ref<const std::string&>();
    const size_t space = pair.find(' ');
    if (space == std::string_view::npos || pair.find(' ', space + 1) != std::string_view::npos) {
      return error(fmt::format("\"{}\" is not two tokens separated by one space", pair));
    }
    left = pair.substr(0, space);
    right = pair.substr(space + 1);
  } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
    left = item[0].get_ref<const std::string&>();
    right = item[1].get_ref<const std::string&>();
  } else {
    return error("is neither \"left right\" nor [\"left\", \"right\"]");
  }
  const std::string joined = std::string(left).append(right);
  BpeSpec::Merge merge;
  for (const auto& [name, id] : {std::pair<std::string_view, int32_t*>{left, &merge.left},
                                 {right, &merge.right},
                                 {joined, &merge.result}}) {
    const auto found = vocab_.find(name);
    if (found == vocab_.end()) {
      return error(fmt::format("needs token \"{}\", which is not in the vocabulary", name));
    }
    *id = found->second;
  }
  return merge;
}

absl::Status Reader::ReadAddedTokens() {
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

absl::StatusOr<AddedToken> Reader::ReadAddedToken(const JsonFields& entry) {
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

absl::Status Reader::ReadPostProcessor() {
  return ForEachStep("post_processor", "processors", [this](const JsonFields& fields) {
    const std::string type = TypeOf(fields);
    if (type == "ByteLevel") return absl::OkStatus();  // offsets only
    if (type == "TemplateProcessing") return ReadTemplate(fields);
    return Unsupported(fields, "type",
                       fmt::format("post-processor \"{}\" is not supported; supported are "
                                   "TemplateProcessing, ByteLevel and Sequence",
                                   type));
  });
}

// Only what comes before the text matters: a prompt is continued, so nothing is put after it.
absl::Status Reader::ReadTemplate(const JsonFields& fields) {
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

int32_t Reader::IdOf(const std::string& token) const {
  for (const AddedToken& added : spec_.added) {
    if (added.content == token) return added.id;
  }
  const auto found = vocab_.find(token);
  return found == vocab_.end() ? -1 : found->second;
}

absl::Status Reader::FindBosAndEos() {
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

absl::Status Reader::FinishTokens() {
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

absl::StatusOr<HfTokenizerSpec> Reader::Read() {
  spec_.bpe.byte_symbols = false;  // until a ByteLevel pre-tokenizer is met
  LH_RETURN_IF_ERROR(ReadNormalizer());
  LH_RETURN_IF_ERROR(ReadPreTokenizer());
  LH_RETURN_IF_ERROR(ReadModel());
  LH_RETURN_IF_ERROR(ReadAddedTokens());
  LH_RETURN_IF_ERROR(FinishTokens());
  return std::move(spec_);
}

}  // namespace

absl::StatusOr<HfTokenizerSpec> ReadHfTokenizer(const std::string& path, std::string_view json_text,
                                                const SpecialConfig& config) {
  LH_ASSIGN_OR_RETURN(const json root, ParseJson(path, json_text));
  if (!root.is_object()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the top level is {}, expected an object", path, root.type_name()));
  }
  return Reader(path, root, config).Read();
}

}  // namespace longhaul
