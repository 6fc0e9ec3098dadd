#include "server/text/bpe.h"

#include <algorithm>

#include "server/text/unicode.h"

namespace longhaul {
namespace {

constexpr size_t kGroup_bytes = 64 << 10;  // pieces that one thread encodes in one go

uint64_t NeighbourKey(uint32_t left, uint32_t right) {
  return static_cast<uint64_t>(left) << 21 | right;
}

}  // namespace

BpeModel::BpeModel(BpeSpec spec) : spec_(std::move(spec)) {
  merges_.reserve(spec_.merges.size());
  size_t shared_rank = 0;
  for (size_t rank = 0; rank < spec_.merges.size(); ++rank) {
    const BpeSpec::Merge& merge = spec_.merges[rank];
    const bool shares =
        spec_.results_share_rank && rank > 0 && merge.result == spec_.merges[shared_rank].result;
    if (!shares) shared_rank = rank;
    // A pair that is listed twice has its last rank, as in Hugging Face's reader.
    merges_[BpePairKey(merge.left, merge.right)] = {static_cast<int32_t>(shared_rank),
                                                    merge.result};
  }
  BuildSymbols();
  BuildWholeTokens();
}

void BpeModel::BuildSymbols() {
  symbol_ids_.fill(-1);
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    const std::string& token = spec_.tokens[id];
    if (token.empty()) continue;
    if (spec_.byte_symbols) {
      if (token.size() == 1) symbol_ids_[static_cast<uint8_t>(token[0])] = static_cast<int32_t>(id);
      continue;
    }
    const Utf8Char first = DecodeUtf8(token.data());
    if (static_cast<size_t>(first.length) == token.size()) {
      char_ids_[first.code_point] = static_cast<int32_t>(id);
      if (first.code_point < 0x80) symbol_ids_[first.code_point] = static_cast<int32_t>(id);
    }
  }
  if (spec_.byte_symbols) return;
  for (const BpeSpec::Merge& merge : spec_.merges) {
    const std::string& token = spec_.tokens[merge.result];
    uint32_t left = 0;
    for (size_t i = 0; i < token.size();) {
      const Utf8Char c = DecodeUtf8(token.data() + i);
      if (i > 0) neighbours_.insert(NeighbourKey(left, c.code_point));
      left = c.code_point;
      i += c.length;
    }
  }
}

void BpeModel::BuildWholeTokens() {
  Scratch scratch;
  std::vector<int32_t> ids;
  whole_.reserve(spec_.tokens.size());
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    const std::string& token = spec_.tokens[id];
    if (token.empty()) continue;
    if (!spec_.ignore_merges) {
      ids.clear();
      Encode(token, &scratch, &ids);
      if (ids.size() != 1 || ids[0] != static_cast<int32_t>(id)) continue;
    }
    whole_[token] = static_cast<int32_t>(id);
  }
  for (const auto& [piece, id] : spec_.whole_pieces) whole_[piece] = id;
}

int32_t BpeModel::CharId(uint32_t code_point) const {
  if (code_point < 0x80) return symbol_ids_[code_point];
  const auto found = char_ids_.find(code_point);
  return found == char_ids_.end() ? -1 : found->second;
}

void BpeModel::AppendSymbols(std::string_view piece, std::vector<int32_t>* ids) const {
  const auto append_unknown = [&] {
    if (spec_.unk_id < 0) return;
    if (spec_.fuse_unk && !ids->empty() && ids->back() == spec_.unk_id) return;
    ids->push_back(spec_.unk_id);
  };
  if (spec_.byte_symbols) {
    for (const char c : piece) {
      const int32_t id = symbol_ids_[static_cast<uint8_t>(c)];
      if (id >= 0) {
        ids->push_back(id);
      } else {
        append_unknown();
      }
    }
    return;
  }
  for (size_t i = 0; i < piece.size();) {
    const Utf8Char c = DecodeUtf8(piece.data() + i);
    if (const int32_t id = CharId(c.code_point); id >= 0) {
      ids->push_back(id);
    } else if (spec_.byte_ids[0] >= 0) {
      for (int k = 0; k < c.length; ++k) {
        ids->push_back(spec_.byte_ids[static_cast<uint8_t>(piece[i + k])]);
      }
    } else {
      append_unknown();
    }
    i += c.length;
  }
}

BpeModel::Target BpeModel::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(BpePairKey(left, right));
  return found == merges_.end() ? Target{kNoMerge, -1} : found->second;
}

void BpeModel::Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (const auto found = whole_.find(piece); found != whole_.end()) {
    ids->push_back(found->second);
    return;
  }
  scratch->ids.clear();
  AppendSymbols(piece, &scratch->ids);
  if (scratch->ids.size() <= kShortPiece_symbols) {
    MergeShort(scratch);
    ids->insert(ids->end(), scratch->ids.begin(), scratch->ids.end());
    return;
  }
  const std::vector<int32_t> symbols = std::move(scratch->ids);
  Tokens tokens;
  MergeLong(symbols, 0, scratch, &tokens);
  ids->insert(ids->end(), tokens.ids.begin(), tokens.ids.end());
}

// Repeatedly merges the pair of the lowest rank, the leftmost of equals.
void BpeModel::MergeShort(Scratch* scratch) const {
  std::vector<int32_t>& ids = scratch->ids;
  std::vector<int32_t>& ranks = scratch->ranks;
  if (ids.size() < 2) return;
  ranks.resize(ids.size() - 1);
  for (size_t i = 0; i + 1 < ids.size(); ++i) ranks[i] = FindMerge(ids[i], ids[i + 1]).rank;
  while (!ranks.empty()) {
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (*best == kNoMerge) break;
    const size_t i = best - ranks.begin();
    ids[i] = spec_.merges[*best].result;
    ids.erase(ids.begin() + i + 1);
    ranks.erase(best);
    if (i < ranks.size()) ranks[i] = FindMerge(ids[i], ids[i + 1]).rank;
    if (i > 0) ranks[i - 1] = FindMerge(ids[i - 1], ids[i]).rank;
  }
}

void BpeModel::EncodePieces(std::string_view text, const std::vector<uint32_t>& ends,
                            ThreadPool* pool, std::vector<int32_t>* ids) const {
  // Pieces do not influence each other, so any grouping gives the same ids.
  struct Group {
    size_t first_piece;
    size_t end_piece;
    std::vector<int32_t> ids;
  };
  const auto begin_of = [&](size_t piece) { return piece == 0 ? 0 : ends[piece - 1]; };
  const auto encode = [&](size_t first, size_t last, std::vector<int32_t>* out) {
    Scratch scratch;
    for (size_t i = first; i < last; ++i) {
      Encode(text.substr(begin_of(i), ends[i] - begin_of(i)), &scratch, out);
    }
  };
  if (pool == nullptr) return encode(0, ends.size(), ids);
  std::vector<Group> groups;
  const auto run = [&] {
    pool->ParallelFor(static_cast<int64_t>(groups.size()), [&](int64_t i, int) {
      encode(groups[i].first_piece, groups[i].end_piece, &groups[i].ids);
    });
    for (const Group& group : groups) ids->insert(ids->end(), group.ids.begin(), group.ids.end());
    groups.clear();
  };
  for (size_t i = 0; i < ends.size(); ++i) {
    if (ends[i] - begin_of(i) > kLongPiece_bytes) {
      run();
      EncodeLong(text.substr(begin_of(i), ends[i] - begin_of(i)), pool, ids);
    } else if (groups.empty() || ends[i] - begin_of(groups.back().first_piece) > kGroup_bytes) {
      groups.push_back({i, i + 1, {}});
    } else {
      groups.back().end_piece = i + 1;
    }
  }
  run();
}

void BpeModel::CutWhereNoTokenSpans(std::string_view text, std::vector<uint32_t>* ends) const {
  // With ignore_merges a piece may be a token that no merges lead to.
  const bool may_cut = !spec_.byte_symbols && !spec_.ignore_merges;
  uint32_t left = 0;
  for (size_t i = 0; may_cut && i < text.size();) {
    const Utf8Char c = DecodeUtf8(text.data() + i);
    if (i > 0 && !neighbours_.contains(NeighbourKey(left, c.code_point))) {
      const bool fuses = spec_.fuse_unk && CharId(left) < 0 && CharId(c.code_point) < 0;
      if (!fuses) ends->push_back(static_cast<uint32_t>(i));
    }
    left = c.code_point;
    i += c.length;
  }
  if (!text.empty()) ends->push_back(static_cast<uint32_t>(text.size()));
}

}  // namespace longhaul
