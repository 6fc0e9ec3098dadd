// The vocabulary and the merges of a tokenizer.json.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "server/text/hf_tokenizer_reader.h"

namespace longhaul {
namespace {

using nlohmann::json;

constexpr size_t kMaxMerges = 1 << 22;

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

}  // namespace

absl::Status HfTokenizerReader::ReadModel() {
  LH_ASSIGN_OR_RETURN(const json* object, root_.Object("model"));
  if (object == nullptr) return root_.Error("model", "is missing");
  const JsonFields model = root_.Child("model", object);
  // Files of before 2020 have no type; they have merges.
  const std::string type = HfTypeOf(model);
  if (type != "BPE" && !(type.empty() && model.Find("merges") != nullptr)) {
    return HfUnsupported(model, "type", fmt::format("\"{}\" is not supported, only BPE is", type));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> text, model.String(key));
    if (text && !text->empty()) return HfUnsupported(model, key, "is not supported");
  }
  if (const json* dropout = model.Find("dropout"); dropout != nullptr && *dropout != 0) {
    return HfUnsupported(model, "dropout", "is for training; remove it");
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

absl::Status HfTokenizerReader::ReadVocab(const JsonFields& model) {
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

absl::Status HfTokenizerReader::FindByteTokens(const JsonFields& model) {
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

absl::Status HfTokenizerReader::ReadMerges(const JsonFields& model) {
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

absl::StatusOr<BpeSpec::Merge> HfTokenizerReader::ReadMerge(const JsonFields& model, size_t rank,
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

}  // namespace longhaul
