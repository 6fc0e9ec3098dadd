#include "server/text/bpe.h"

#include <algorithm>
#include <functional>

#include "kernels/base/check.h"
#include "server/text/unicode.h"

namespace longhaul {
namespace {

uint64_t MergeKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

uint64_t NeighbourKey(uint32_t left, uint32_t right) {
  return static_cast<uint64_t>(left) << 21 | right;
}

}  // namespace

BpeModel::BpeModel(BpeSpec spec) : spec_(std::move(spec)) {
  merges_.reserve(spec_.merges.size());
  for (size_t rank = 0; rank < spec_.merges.size(); ++rank) {
    const BpeSpec::Merge& merge = spec_.merges[rank];
    // A pair that is listed twice has its last rank, as in Hugging Face's reader.
    merges_[MergeKey(merge.left, merge.right)] = {static_cast<int32_t>(rank), merge.result};
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
  const auto found = merges_.find(MergeKey(left, right));
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
  } else {
    MergeLong(scratch);
  }
  ids->insert(ids->end(), scratch->ids.begin(), scratch->ids.end());
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

void BpeModel::AddCandidate(int32_t rank, int32_t position, Scratch* scratch) {
  const auto [found, is_new] = scratch->buckets.try_emplace(rank);
  if (is_new) {
    scratch->ranks_left.push_back(rank);
    std::push_heap(scratch->ranks_left.begin(), scratch->ranks_left.end(), std::greater<>());
  }
  Scratch::Bucket& bucket = found->second;
  if (!bucket.positions.empty() && position < bucket.positions.back()) bucket.sorted = false;
  bucket.positions.push_back(position);
}

// The same with candidates in buckets by rank. Long pieces have few ranks, so this costs a lookup
// per candidate; one heap over all candidates took four times as long for a megabyte of spaces. A
// candidate whose pair has changed meanwhile is skipped when it comes up.
void BpeModel::MergeLong(Scratch* scratch) const {
  std::vector<int32_t>& ids = scratch->ids;
  std::vector<int32_t>& next = scratch->next;
  std::vector<int32_t>& previous = scratch->previous;
  std::vector<int32_t>& ranks_left = scratch->ranks_left;
  LH_CHECK(ids.size() < INT32_MAX);
  const int32_t n = static_cast<int32_t>(ids.size());
  constexpr int32_t kGone = -1;  // in ids: merged into the symbol before it
  next.resize(n);
  previous.resize(n);
  scratch->buckets.clear();
  ranks_left.clear();
  uint64_t last_key = MergeKey(kGone, kGone);  // runs of one character ask for one pair
  Target last_target{kNoMerge, -1};
  const auto add = [&](int32_t position) {
    const int32_t left = ids[position], right = ids[next[position]];
    if (const uint64_t key = MergeKey(left, right); key != last_key) {
      last_key = key;
      last_target = FindMerge(left, right);
    }
    if (last_target.rank != kNoMerge) AddCandidate(last_target.rank, position, scratch);
  };
  for (int32_t i = 0; i < n; ++i) {
    previous[i] = i - 1;
    next[i] = i + 1;
  }
  for (int32_t i = 0; i + 1 < n; ++i) add(i);

  while (!ranks_left.empty()) {
    const int32_t rank = ranks_left.front();
    Scratch::Bucket& bucket = scratch->buckets.find(rank)->second;
    if (bucket.done == bucket.positions.size()) {
      std::pop_heap(ranks_left.begin(), ranks_left.end(), std::greater<>());
      ranks_left.pop_back();
      scratch->buckets.erase(rank);
      continue;
    }
    if (!bucket.sorted) {
      std::sort(bucket.positions.begin() + bucket.done, bucket.positions.end());
      bucket.sorted = true;
    }
    const int32_t i = bucket.positions[bucket.done++];
    const BpeSpec::Merge& merge = spec_.merges[rank];
    if (ids[i] != merge.left || next[i] == n || ids[next[i]] != merge.right) continue;
    const int32_t gone = next[i];
    ids[i] = merge.result;
    ids[gone] = kGone;
    next[i] = next[gone];
    if (next[i] < n) previous[next[i]] = i;
    if (previous[i] >= 0) add(previous[i]);
    if (next[i] < n) add(i);
  }
  ids.erase(std::remove(ids.begin(), ids.end(), kGone), ids.end());
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
