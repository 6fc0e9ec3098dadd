// Merging of long pieces: runs of one character, text without spaces.
//
// A piece is merged in windows that overlap. What makes them one: merging takes again and again
// the pair of the lowest rank, the leftmost of equals, so what happens on one side of a border that
// is never merged across does not depend on the other side. Let windows A and B overlap, and let
// both have a border at s and both at e > s (s may be where B begins, e where A ends). Suppose the
// merging of all of A and B together crosses s or e, the first time by a pair over e. Until then
// the middle [s, e) and what follows have gone through the same states, in the same order against
// each other, as in B alone; there that pair was the lowest too and B would have crossed e. Over s
// the same holds with A. So neither is crossed, and the tokens of A before s followed by those of B
// from s are the tokens of the whole.
#include <algorithm>
#include <functional>
#include <optional>

#include "kernels/base/check.h"
#include "server/text/bpe.h"

namespace longhaul {
namespace {

constexpr int32_t kGone = -1;  // in Scratch::ids: merged into the symbol before it
// Symbols of a thread's part, and how far it goes into the next: borders meet within a few tokens,
// but for runs whose tokens do not divide the part.
constexpr size_t kPart_symbols = 64 << 10;
constexpr size_t kOverlap_symbols = 1024;

struct Border {
  size_t in_first;  // index of the token that begins there
  size_t in_second;
};

// The first border from index `from` of `first` on that `second` has too, with another common one
// behind it; `first` ends at `first_end`. nullopt: they do not meet.
std::optional<Border> FindCommonBorder(std::span<const uint32_t> first, size_t from,
                                       size_t first_end, std::span<const uint32_t> second) {
  std::optional<Border> found;
  size_t i = from, k = 0;
  while (k < second.size()) {
    const size_t at = i < first.size() ? first[i] : first_end;
    if (at == second[k]) {
      if (found) return found;
      if (i == first.size()) return std::nullopt;
      found = Border{i++, k++};
    } else if (at < second[k]) {
      if (i++ == first.size()) return std::nullopt;
    } else {
      ++k;
    }
  }
  return std::nullopt;
}

}  // namespace

int32_t BpeModel::RankOf(int32_t left, int32_t right, Scratch* scratch) const {
  const uint64_t key = BpePairKey(left, right);
  const size_t n_known = scratch->known_pairs.size();
  Scratch::KnownPair& known = scratch->known_pairs[(key * 0x9E3779B97F4A7C15u >> 32) % n_known];
  if (known.key != key) known = {key, FindMerge(left, right).rank};
  return known.rank;
}

// The pair that begins at `position` becomes a candidate for merging if it has a rank.
void BpeModel::AddPair(int32_t position, Scratch* scratch) const {
  const int32_t rank =
      RankOf(scratch->ids[position], scratch->ids[scratch->next[position]], scratch);
  if (rank == kNoMerge) return;
  if (rank != scratch->last_rank) {
    const auto [found, is_new] = scratch->bucket_of.try_emplace(rank, -1);
    if (is_new) {
      if (scratch->free_buckets.empty()) {
        scratch->free_buckets.push_back(static_cast<int32_t>(scratch->buckets.size()));
        scratch->buckets.emplace_back();
      }
      found->second = scratch->free_buckets.back();
      scratch->free_buckets.pop_back();
      scratch->ranks_left.push_back(rank);
      std::push_heap(scratch->ranks_left.begin(), scratch->ranks_left.end(), std::greater<>());
    }
    scratch->last_rank = rank;
    scratch->last_bucket = found->second;
  }
  Scratch::Bucket& bucket = scratch->buckets[scratch->last_bucket];
  if (!bucket.positions.empty() && position < bucket.positions.back()) bucket.sorted = false;
  bucket.positions.push_back(position);
}

bool BpeModel::IsMergeOf(int32_t rank, int32_t left, int32_t right, Scratch* scratch) const {
  const BpeSpec::Merge& merge = spec_.merges[rank];
  if (left == merge.left && right == merge.right) return true;
  return spec_.results_share_rank && left >= 0 && RankOf(left, right, scratch) == rank;
}

// Does the merges of `rank` from left to right, until all are done or one makes a pair of a lower
// rank. A candidate whose pair has changed meanwhile is skipped when it comes up.
void BpeModel::RunMerges(int32_t rank, Scratch* scratch) const {
  std::vector<int32_t>& ids = scratch->ids;
  std::vector<int32_t>& next = scratch->next;
  const int32_t n = static_cast<int32_t>(ids.size());
  const int32_t index = scratch->bucket_of.find(rank)->second;
  while (scratch->ranks_left.front() == rank) {
    Scratch::Bucket& bucket = scratch->buckets[index];
    if (bucket.done == bucket.positions.size()) {
      bucket.positions.clear();
      bucket.done = 0;
      bucket.sorted = true;
      scratch->bucket_of.erase(rank);
      scratch->free_buckets.push_back(index);
      if (scratch->last_rank == rank) scratch->last_rank = -1;
      std::pop_heap(scratch->ranks_left.begin(), scratch->ranks_left.end(), std::greater<>());
      scratch->ranks_left.pop_back();
      return;
    }
    if (!bucket.sorted) {
      std::sort(bucket.positions.begin() + bucket.done, bucket.positions.end());
      bucket.sorted = true;
    }
    const int32_t i = bucket.positions[bucket.done++];
    if (next[i] == n || !IsMergeOf(rank, ids[i], ids[next[i]], scratch)) continue;
    const int32_t gone = next[i];
    ids[i] = spec_.merges[rank].result;
    ids[gone] = kGone;
    next[i] = next[gone];
    if (next[i] < n) scratch->previous[next[i]] = i;
    if (scratch->previous[i] >= 0) AddPair(scratch->previous[i], scratch);
    if (next[i] < n) AddPair(i, scratch);
  }
}

// Candidates lie in buckets by rank: a long piece has few ranks. One heap over all candidates took
// four times as long for a megabyte of spaces.
void BpeModel::MergeWindow(std::span<const int32_t> symbols, uint32_t first, Scratch* scratch,
                           Tokens* tokens) const {
  LH_CHECK(symbols.size() < INT32_MAX);
  const int32_t n = static_cast<int32_t>(symbols.size());
  scratch->ids.assign(symbols.begin(), symbols.end());
  scratch->next.resize(n);
  scratch->previous.resize(n);
  for (int32_t i = 0; i < n; ++i) {
    scratch->previous[i] = i - 1;
    scratch->next[i] = i + 1;
  }
  for (int32_t i = 0; i + 1 < n; ++i) AddPair(i, scratch);
  while (!scratch->ranks_left.empty()) RunMerges(scratch->ranks_left.front(), scratch);
  tokens->ids.clear();
  tokens->begins.clear();
  for (int32_t i = 0; i < n; i = scratch->next[i]) {
    tokens->ids.push_back(scratch->ids[i]);
    tokens->begins.push_back(first + static_cast<uint32_t>(i));
  }
}

// Every window begins where a token of the one before begins. False where two do not meet.
bool BpeModel::MergeInWindows(std::span<const int32_t> symbols, uint32_t first, size_t n_window,
                              Scratch* scratch, Tokens* tokens) const {
  const size_t end = first + symbols.size();
  Tokens window, ahead;
  size_t window_end = first + std::min(n_window, symbols.size());
  MergeWindow(symbols.first(window_end - first), first, scratch, &window);
  const auto accept = [&](size_t n_tokens) {
    tokens->ids.insert(tokens->ids.end(), window.ids.begin(), window.ids.begin() + n_tokens);
    tokens->begins.insert(tokens->begins.end(), window.begins.begin(),
                          window.begins.begin() + n_tokens);
  };
  while (window_end < end) {
    const auto cut = std::prev(
        std::upper_bound(window.begins.begin(), window.begins.end(), window_end - n_window / 8));
    if (*cut < window_end - n_window / 2) return false;
    const size_t n_accepted = cut - window.begins.begin();
    const size_t ahead_end = std::min(*cut + n_window, end);
    MergeWindow(symbols.subspan(*cut - first, ahead_end - *cut), *cut, scratch, &ahead);
    if (!FindCommonBorder(window.begins, n_accepted, window_end, ahead.begins)) return false;
    accept(n_accepted);
    window_end = ahead_end;
    std::swap(window, ahead);
  }
  accept(window.ids.size());
  return true;
}

// `symbols` begin with symbol `first` of their piece. Only tokens of hundreds of symbols need more
// than the smallest window.
void BpeModel::MergeLong(std::span<const int32_t> symbols, uint32_t first, Scratch* scratch,
                         Tokens* tokens) const {
  for (size_t n_window = kWindow_symbols;; n_window *= 2) {
    tokens->ids.clear();
    tokens->begins.clear();
    if (MergeInWindows(symbols, first, n_window, scratch, tokens)) return;
  }
}

void BpeModel::EncodeLong(std::string_view piece, ThreadPool* pool,
                          std::vector<int32_t>* ids) const {
  std::vector<int32_t> all;
  AppendSymbols(piece, &all);
  const std::span<const int32_t> symbols(all);
  const size_t n_parts = std::max<size_t>(1, symbols.size() / kPart_symbols);
  std::vector<Tokens> parts(n_parts);
  const auto end_of = [&](size_t part) {
    return part + 1 == n_parts ? symbols.size() : (part + 1) * kPart_symbols + kOverlap_symbols;
  };
  // The last part may be the shorter one, but never shorter than the overlap.
  pool->ParallelFor(static_cast<int64_t>(n_parts), [&](int64_t part, int) {
    const size_t begin = part * kPart_symbols;
    Scratch scratch;
    MergeLong(symbols.subspan(begin, std::min(end_of(part), symbols.size()) - begin),
              static_cast<uint32_t>(begin), &scratch, &parts[part]);
  });
  const size_t n_before = ids->size();
  size_t n_skip = 0;  // tokens of this part that the one before has covered
  for (size_t part = 0; part + 1 < n_parts; ++part) {
    const Tokens& left = parts[part];
    const auto from =
        std::lower_bound(left.begins.begin(), left.begins.end(), (part + 1) * kPart_symbols);
    const std::optional<Border> border =
        FindCommonBorder(left.begins, from - left.begins.begin(),
                         std::min(end_of(part), symbols.size()), parts[part + 1].begins);
    if (!border || border->in_first < n_skip) {  // by one thread, then
      ids->resize(n_before);
      Scratch scratch;
      Tokens tokens;
      MergeLong(symbols, 0, &scratch, &tokens);
      ids->insert(ids->end(), tokens.ids.begin(), tokens.ids.end());
      return;
    }
    ids->insert(ids->end(), left.ids.begin() + n_skip, left.ids.begin() + border->in_first);
    n_skip = border->in_second;
  }
  ids->insert(ids->end(), parts.back().ids.begin() + n_skip, parts.back().ids.end());
}

}  // namespace longhaul
