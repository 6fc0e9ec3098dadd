#include "server/text/sentencepiece_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>

#include "absl/container/flat_hash_set.h"

#include "server/text/detokenizer.h"

namespace longhaul {
namespace {

constexpr size_t kParallelText_bytes = 64 << 10;
// The library is superlinear in its input: 16 KB pieces run about as fast per byte as short texts.
constexpr size_t kSegment_bytes = 16 << 10;
constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581
// A private-use character: no model has a piece with it, so nothing merges across it.
constexpr std::string_view kSentinel = "\xEE\x80\x80";  // U+E000

// Spaces written as marks; the piece of one byte <0x41> is that byte.
std::string PieceBytes(const std::string& piece, SentencePieceModel::PieceKind kind) {
  if (kind == SentencePieceModel::PieceKind::kByte && piece.size() == 6) {
    return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
  }
  std::string bytes;
  for (size_t i = 0; i < piece.size();) {
    if (std::string_view(piece).substr(i).starts_with(kWordMark)) {
      bytes.push_back(' ');
      i += kWordMark.size();
    } else {
      bytes.push_back(piece[i++]);
    }
  }
  return bytes;
}

// True when a mark follows another character inside the piece.
bool SpansWordBorder(std::string_view piece) {
  for (size_t at = 0; (at = piece.find(kWordMark, at)) != std::string_view::npos;
       at += kWordMark.size()) {
    if (at > 0 && !piece.substr(0, at).ends_with(kWordMark)) return true;
  }
  return false;
}

}  // namespace

SentencePieceTokenizer::SentencePieceTokenizer(std::unique_ptr<SentencePieceModel> model,
                                               int n_threads)
    : model_(std::move(model)), pool_(n_threads) {}

absl::StatusOr<std::unique_ptr<SentencePieceTokenizer>> SentencePieceTokenizer::Create(
    const std::string& path, std::string_view serialized, const SpecialConfig& config,
    int n_threads) {
  absl::StatusOr<std::unique_ptr<SentencePieceModel>> model = SentencePieceModel::Load(serialized);
  if (!model.ok()) {
    return absl::Status(model.status().code(),
                        fmt::format("{}: {}", path, std::string(model.status().message())));
  }
  std::unique_ptr<SentencePieceTokenizer> tokenizer(
      new SentencePieceTokenizer(*std::move(model), n_threads));
  LH_RETURN_IF_ERROR(tokenizer->ReadPieces(path, config));
  LH_RETURN_IF_ERROR(tokenizer->ProbeSpaces(path));
  if (const std::optional<SentencePieceFile> file = ReadSentencePieceFile(serialized)) {
    tokenizer->bpe_ = SentencePieceBpe::Create(*file);
  }
  return tokenizer;
}

absl::Status SentencePieceTokenizer::ReadPieces(const std::string& path,
                                                const SpecialConfig& config) {
  using Kind = SentencePieceModel::PieceKind;
  const int32_t n_pieces = model_->n_pieces();
  if (n_pieces <= 0 || n_pieces > kMaxVocab) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} pieces, from 1 to {} are accepted", path, n_pieces, kMaxVocab));
  }
  std::vector<AddedToken> added;
  absl::flat_hash_set<int32_t> added_ids;
  can_cut_ = true;
  token_bytes_.resize(n_pieces);
  for (int32_t id = 0; id < n_pieces; ++id) {
    const std::string& piece = model_->Piece(id);
    const Kind kind = model_->Kind(id);
    if (kind == Kind::kControl || kind == Kind::kUnknown) {
      AddedToken token;
      token.content = piece;
      token.id = id;
      token.special = token.control = true;
      added.push_back(std::move(token));
      added_ids.insert(id);
    } else {
      token_bytes_[id] = PieceBytes(piece, kind);
      if (SpansWordBorder(piece)) can_cut_ = false;
    }
  }
  for (const AddedToken& token : config.added_tokens) {
    // Ids inside the model are named by the model itself.
    if (token.id < n_pieces && token.content != model_->Piece(token.id)) {
      return absl::InvalidArgumentError(
          fmt::format("tokenizer_config.json: added_tokens_decoder: id {} is \"{}\", in {} it is "
                      "\"{}\"",
                      token.id, token.content, path, model_->Piece(token.id)));
    }
    if (!added_ids.insert(token.id).second) continue;
    added.push_back(token);
    added.back().control = token.special || token.content.starts_with("<|");
    if (token.id >= n_pieces) {
      token_bytes_.resize(std::max<size_t>(token_bytes_.size(), token.id + 1));
      token_bytes_[token.id] = token.special ? "" : token.content;
    }
  }
  token_names_.resize(token_bytes_.size());
  is_special_.resize(token_bytes_.size());
  for (const AddedToken& token : added) {
    token_names_[token.id] = token.content;
    is_special_[token.id] = token.special;
    if (token.special) token_bytes_[token.id].clear();
    special_ids_[token.content] = token.id;
    added_.Add(token);
  }

  bos_id_ = config.bos_token ? SpecialId(*config.bos_token) : model_->bos_id();
  add_bos_ = bos_id_ >= 0 && config.add_bos.value_or(true);
  eos_ids_ = config.eos_ids;
  const int32_t eos_id = config.eos_token ? SpecialId(*config.eos_token) : model_->eos_id();
  if (eos_id >= 0 && std::find(eos_ids_.begin(), eos_ids_.end(), eos_id) == eos_ids_.end()) {
    eos_ids_.push_back(eos_id);
  }
  return absl::OkStatus();
}

// What the model does with spaces is in its normalizer_spec, which the library does not show; small
// texts tell.
absl::Status SentencePieceTokenizer::ProbeSpaces(const std::string& path) {
  std::string error;
  std::vector<int32_t> spaces;
  if (!model_->Encode(kSentinel, &sentinel_ids_, &error) ||
      !model_->Encode("a  a", &spaces, &error)) {
    return absl::InvalidArgumentError(fmt::format("{}: cannot encode: {}", path, error));
  }
  const auto text_of = [this](const std::vector<int32_t>& ids) {
    std::string text;
    for (const int32_t id : ids) text.append(TokenBytes(id));
    return text;
  };
  puts_space_first_ = text_of(sentinel_ids_).starts_with(' ');
  // Where runs of spaces collapse (T5 and other models that are no decoders), or no space is put
  // first, a segment cannot be encoded alone.
  const bool keeps_spaces = text_of(spaces).ends_with("a  a");
  can_cut_ = can_cut_ && keeps_spaces && puts_space_first_;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::Encode(std::string_view text,
                                                                    bool add_bos,
                                                                    SpecialTokens special) const {
  std::vector<int32_t> ids;
  if (add_bos && add_bos_) ids.push_back(bos_id_);
  LH_RETURN_IF_ERROR(EncodeText(text, special == SpecialTokens::kParse, &ids));
  return ids;
}

absl::Status SentencePieceTokenizer::EncodeText(std::string_view text, bool find_control,
                                                std::vector<int32_t>* ids) const {
  LH_RETURN_IF_ERROR(CheckText(text));
  size_t done = 0;
  bool at_start = true;
  for (const AddedTokens::Match& match : added_.Find(text, find_control, classes_)) {
    LH_RETURN_IF_ERROR(EncodeRun(text.substr(done, match.begin - done), at_start, ids));
    ids->push_back(match.id);
    // A text behind <s> is the start of a text; one behind [INST] or <|im_start|> is not.
    at_start = match.id == bos_id_;
    done = match.end;
  }
  return EncodeRun(text.substr(done), at_start, ids);
}

absl::Status SentencePieceTokenizer::EncodeRun(std::string_view text, bool at_start,
                                               std::vector<int32_t>* ids) const {
  if (text.empty()) return absl::OkStatus();
  std::unique_lock<std::mutex> lock(pool_mutex_, std::defer_lock);
  const bool parallel = text.size() >= kParallelText_bytes && lock.try_lock();
  if (bpe_ != nullptr) {
    bpe_->Encode(text, at_start, parallel ? &pool_ : nullptr, ids);
    return absl::OkStatus();
  }
  const std::vector<std::string_view> segments = CutAtSpaces(text);
  if (!parallel) {
    for (size_t i = 0; i < segments.size(); ++i) {
      LH_RETURN_IF_ERROR(EncodeSegment(segments[i], at_start && i == 0, ids));
    }
    return absl::OkStatus();
  }
  std::vector<std::vector<int32_t>> results(segments.size());
  std::vector<absl::Status> statuses(segments.size());
  pool_.ParallelFor(static_cast<int64_t>(segments.size()), [&](int64_t i, int) {
    statuses[i] = EncodeSegment(segments[i], at_start && i == 0, &results[i]);
  });
  for (size_t i = 0; i < segments.size(); ++i) {
    LH_RETURN_IF_ERROR(statuses[i]);
    ids->insert(ids->end(), results[i].begin(), results[i].end());
  }
  return absl::OkStatus();
}

absl::Status SentencePieceTokenizer::EncodeSegment(std::string_view segment, bool at_start,
                                                   std::vector<int32_t>* ids) const {
  std::string error;
  const auto failed = [&error] {
    return absl::InvalidArgumentError(
        fmt::format("sentencepiece cannot encode this text: {}", error));
  };
  if (at_start || !puts_space_first_) {
    return model_->Encode(segment, ids, &error) ? absl::OkStatus() : failed();
  }
  // The library's space stands in for the text's own.
  if (segment.starts_with(' ') && segment.size() > 1) {
    return model_->Encode(segment.substr(1), ids, &error) ? absl::OkStatus() : failed();
  }
  std::vector<int32_t> with_sentinel;
  if (!model_->Encode(std::string(kSentinel).append(segment), &with_sentinel, &error)) {
    return failed();
  }
  const size_t n_drop = std::min(sentinel_ids_.size(), with_sentinel.size());
  ids->insert(ids->end(), with_sentinel.begin() + n_drop, with_sentinel.end());
  return absl::OkStatus();
}

// Every segment but the first begins with a single space between two characters that are none.
std::vector<std::string_view> SentencePieceTokenizer::CutAtSpaces(std::string_view text) const {
  const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  std::vector<std::string_view> segments;
  while (can_cut_ && text.size() > kSegment_bytes) {
    size_t at = kSegment_bytes;
    for (; at + 1 < text.size(); ++at) {
      if (text[at] == ' ' && !is_blank(text[at - 1]) && !is_blank(text[at + 1])) break;
    }
    if (at + 1 >= text.size()) break;
    segments.push_back(text.substr(0, at));
    text.remove_prefix(at);
  }
  segments.push_back(text);
  return segments;
}

std::string_view SentencePieceTokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return token_bytes_[id];
}

std::string SentencePieceTokenizer::TokenText(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return token_names_[id].empty() ? SanitizeUtf8(token_bytes_[id]) : token_names_[id];
}

bool SentencePieceTokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && is_special_[id];
}

int32_t SentencePieceTokenizer::SpecialId(std::string_view text) const {
  const auto found = special_ids_.find(std::string(text));
  return found == special_ids_.end() ? -1 : found->second;
}

}  // namespace longhaul
