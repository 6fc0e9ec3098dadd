#include "server/text/sentencepiece_bpe.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "server/text/detokenizer.h"
#include "server/text/normalizer.h"

namespace longhaul {
namespace {

using PieceType = SentencePieceFile::PieceType;

constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581
// Every way to cut a piece in two is a merge; published models have up to three times their pieces.
constexpr size_t kMaxMerges = 1 << 22;
constexpr size_t kMaxPiece_bytes = 512;

bool IsOneCharacter(std::string_view text) {
  return !text.empty() && static_cast<size_t>(DecodeUtf8(text.data()).length) == text.size();
}

// True where ids depend on nothing but merges, spaces and user symbols.
bool OnlyMerges(const SentencePieceFile& file) {
  if (file.model_type != SentencePieceFile::ModelType::kBpe || file.maps_characters ||
      file.remove_extra_whitespaces || !file.escape_whitespaces || file.whitespace_is_suffix) {
    return false;
  }
  return std::all_of(file.pieces.begin(), file.pieces.end(), [](const auto& piece) {
    if (piece.text.empty() || piece.text.size() > kMaxPiece_bytes) return false;
    if (FindInvalidUtf8(piece.text) != std::string_view::npos) return false;
    switch (piece.type) {
      case PieceType::kNormal:
        return std::isfinite(piece.score);
      case PieceType::kUserDefined:
        return true;
      case PieceType::kUnknown:
      case PieceType::kControl:
      case PieceType::kByte:
        return !IsOneCharacter(piece.text);  // the library would find it in a text
      default:
        return false;  // an unused piece is taken apart again
    }
  });
}

bool FindByteIds(const SentencePieceFile& file, std::array<int32_t, 256>* ids) {
  ids->fill(-1);
  if (!file.byte_fallback) return true;
  for (size_t id = 0; id < file.pieces.size(); ++id) {
    const std::string_view text = file.pieces[id].text;
    if (file.pieces[id].type != PieceType::kByte || text.size() != 6) continue;
    uint8_t byte = 0;  // of "<0x41>"
    if (std::from_chars(text.data() + 3, text.data() + 5, byte, 16).ptr != text.data() + 5) {
      return false;
    }
    (*ids)[byte] = static_cast<int32_t>(id);
  }
  return std::find(ids->begin(), ids->end(), -1) == ids->end();
}

// Merges by falling score; all that give one piece share its rank. False where the library's order
// cannot be told by ranks, or there are too many.
bool FindMerges(const SentencePieceFile& file, BpeSpec* spec) {
  absl::flat_hash_map<std::string_view, int32_t> normal, user_defined;
  std::vector<int32_t> longer;  // normal pieces of more than one character
  for (size_t i = 0; i < file.pieces.size(); ++i) {
    const auto& [text, score, type] = file.pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    if (type == PieceType::kUserDefined) user_defined[text] = id;
    if (type != PieceType::kNormal) continue;
    normal[text] = id;
    if (!IsOneCharacter(text)) longer.push_back(id);
  }
  const auto score_of = [&](int32_t id) { return file.pieces[id].score; };
  std::sort(longer.begin(), longer.end(),
            [&](int32_t a, int32_t b) { return score_of(a) > score_of(b); });
  for (size_t i = 0; i < longer.size(); ++i) {
    // Of two pieces with one score the library takes the leftmost.
    if (i > 0 && score_of(longer[i]) == score_of(longer[i - 1])) return false;
    const std::string_view text = file.pieces[longer[i]].text;
    for (size_t cut = DecodeUtf8(text.data()).length; cut < text.size();
         cut += DecodeUtf8(text.data() + cut).length) {
      const std::string_view left = text.substr(0, cut), right = text.substr(cut);
      bool made = true;  // both parts can come out of merges
      for (const std::string_view part : {left, right}) {
        const bool known = normal.contains(part);
        // An unknown character takes part in the library's merges.
        if (!known && IsOneCharacter(part) && !user_defined.contains(part)) return false;
        made = made && known;
      }
      if (!made) continue;
      if (spec->merges.size() == kMaxMerges) return false;
      spec->merges.push_back({normal[left], normal[right], longer[i]});
    }
  }
  return true;
}

}  // namespace

std::unique_ptr<SentencePieceBpe> SentencePieceBpe::Create(const SentencePieceFile& file) {
  BpeSpec spec;
  spec.byte_symbols = false;
  spec.results_share_rank = true;
  spec.fuse_unk = true;
  if (!OnlyMerges(file) || !FindByteIds(file, &spec.byte_ids) || !FindMerges(file, &spec)) {
    return nullptr;
  }
  AddedTokens user_symbols;
  spec.tokens.resize(file.pieces.size());
  for (size_t i = 0; i < file.pieces.size(); ++i) {
    const SentencePieceFile::Piece& piece = file.pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    if (piece.type == PieceType::kUnknown) spec.unk_id = id;
    if (piece.type == PieceType::kNormal) spec.tokens[i] = piece.text;
    if (piece.type == PieceType::kUserDefined) {
      spec.whole_pieces.emplace_back(piece.text, id);
      user_symbols.Add({.content = std::string(piece.text), .id = id});
    }
  }
  return std::unique_ptr<SentencePieceBpe>(
      new SentencePieceBpe(std::move(spec), std::move(user_symbols), file.add_dummy_prefix));
}

void SentencePieceBpe::Encode(std::string_view text, bool at_start, ThreadPool* pool,
                              std::vector<int32_t>* ids) const {
  if (text.empty()) return;
  std::string marked;
  if (at_start && puts_space_first_) marked.append(kWordMark);
  ReplaceAll(text, " ", kWordMark, &marked);
  text = marked;
  std::vector<uint32_t> ends;
  const auto cut = [&](size_t begin, size_t end) {
    const size_t n_before = ends.size();
    bpe_.CutWhereNoTokenSpans(text.substr(begin, end - begin), &ends);
    for (size_t i = n_before; i < ends.size(); ++i) ends[i] += static_cast<uint32_t>(begin);
  };
  size_t done = 0;
  for (const AddedTokens::Match& match :
       user_symbols_.Find(text, /*find_control=*/true, classes_)) {
    cut(done, match.begin);
    ends.push_back(static_cast<uint32_t>(match.end));
    done = match.end;
  }
  cut(done, text.size());
  bpe_.EncodePieces(text, ends, pool, ids);
}

}  // namespace longhaul
