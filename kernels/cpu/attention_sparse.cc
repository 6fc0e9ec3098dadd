// Attention under a SparsePlan: per query head sink, stripes, diagonal bands and window, each key
// of a row exactly once, all merged by one online softmax.
//
// Distances i - j between row and key that a head keeps on diagonals (the window and its bands)
// form "runs". Keys below the sink are taken by the sink, keys at a distance inside a run by the
// run, and stripes give what is left: that makes the union exact without a per-pair test.

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_scratch.h"

namespace longhaul {
namespace {

using cpu::DenseItem;
using cpu::KeyTile;
using cpu::kTileKeys;
using cpu::LowBits;
using cpu::RowBlock;
using cpu::RowStates;
using cpu::ThreadScratch;

// Rows of a work item. Gathering a stripe key costs two cache-missing rows of a page, about as much
// as 20 rows' use of it; queries and outputs of 512 rows stay in L2 at head_dim 128.
constexpr int64_t kSparseBlockRows = 512;

// Kept distances [begin, end) between a row and a key.
struct DistanceRun {
  int64_t begin;
  int64_t end;
};

// The window first, then the bands, adjacent ones joined. Ascending.
std::vector<DistanceRun> RunsOf(const SparsePlan& plan, int64_t head) {
  std::vector<DistanceRun> runs{{.begin = 0, .end = plan.local.window}};
  if (static_cast<HeadKind>(plan.kind[head]) != HeadKind::kSparse || plan.n_bands == nullptr) {
    return runs;
  }
  for (int32_t i = 0; i < plan.n_bands[head]; ++i) {
    const int64_t begin = plan.bands[head * plan.max_bands + i] * kBandWidth;
    if (begin == runs.back().end) {
      runs.back().end += kBandWidth;
    } else {
      runs.push_back({.begin = begin, .end = begin + kBandWidth});
    }
  }
  return runs;
}

// One head's rows [row_begin, row_end) of the call.
struct SparseItem {
  int64_t head = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  const std::vector<DistanceRun>* runs = nullptr;
};

class SparseRows {
 public:
  SparseRows(const AttendSparseArgs& args, const SparseItem& item, ThreadScratch& scratch)
      : args_(args),
        item_(item),
        runs_(*item.runs),
        kv_head_(item.head / (args.q.dim(1) / args.kv.n_kv_heads)),
        first_(args.q_begin + item.row_begin),
        last_(args.q_begin + item.row_end - 1),
        scratch_(scratch),
        block_(scratch.rows) {}

  void Run() {
    const int64_t n_rows = item_.row_end - item_.row_begin;
    block_.Reset(n_rows, args_.kv.head_dim, cpu::TileWordOf(args_.kv), args_.dual.chunk_tokens,
                 /*with_output=*/true);
    for (int64_t r = 0; r < n_rows; ++r) {
      block_.SetQuery(
          r, cpu::QueriesOf(args_.q, args_.dual, item_.row_begin + r, item_.head, first_ + r),
          args_.scale);
    }
    AddSink();
    AddStripes();
    for (auto run = runs_.rbegin(); run != runs_.rend(); ++run) AddRun(*run);
    Finish();
  }

 private:
  // Row of the block at token `position`, clipped to [0, n_rows].
  int64_t RowAt(int64_t position) const {
    return std::clamp<int64_t>(position - first_, 0, block_.n_rows());
  }

  void AddSink() {
    const int64_t end = std::min(args_.plan.local.sink, last_ + 1);
    for (int64_t begin = 0; begin < end; begin += kTileKeys) {
      scratch_.tile.LoadPage(args_.kv, kv_head_, begin, std::min(kTileKeys, end - begin),
                             /*with_values=*/true);
      const int64_t row = RowAt(begin);
      for (int64_t r = row; r < block_.n_rows(); ++r) {
        block_.visible()[r] = LowBits(std::min(end, first_ + r + 1) - begin);
      }
      AttendRows(scratch_.tile, block_, row, block_.n_rows(), /*masked=*/true);
    }
  }

  // Keys j >= sink with i - j in the run, tile by tile.
  void AddRun(DistanceRun run) {
    const int64_t sink = args_.plan.local.sink;
    const int64_t key_begin = std::max(sink, first_ - run.end + 1);
    const int64_t key_end = last_ - run.begin + 1;
    for (int64_t begin = key_begin / kTileKeys * kTileKeys; begin < key_end; begin += kTileKeys) {
      scratch_.tile.LoadPage(args_.kv, kv_head_, begin, std::min(kTileKeys, last_ + 1 - begin),
                             /*with_values=*/true);
      const int64_t row_begin = RowAt(std::max(begin, sink) + run.begin);
      const int64_t row_end = RowAt(begin + kTileKeys - 1 + run.end);
      const uint64_t not_sink = ~LowBits(sink - begin);
      for (int64_t r = row_begin; r < row_end; ++r) {
        const int64_t distance = first_ + r - begin;  // to the first key of the tile
        block_.visible()[r] =
            LowBits(distance - run.begin + 1) & ~LowBits(distance - run.end + 1) & not_sink;
      }
      AttendRows(scratch_.tile, block_, row_begin, row_end, /*masked=*/true);
    }
  }

  // Keys of this head's stripes that some row of the block may need: not in the sink, and before
  // the window of the last row. Ascending.
  const std::vector<int32_t>& StripeKeys() {
    const SparsePlan& plan = args_.plan;
    std::vector<int32_t>& keys = scratch_.stripe_keys;
    keys.clear();
    if (static_cast<HeadKind>(plan.kind[item_.head]) != HeadKind::kSparse) return keys;
    const int64_t end = last_ + 1 - runs_.front().end;
    const int32_t* stripes = plan.stripes + item_.head * plan.max_stripes;
    for (int32_t s = 0; s < plan.n_stripes[item_.head]; ++s) {
      const int64_t begin = std::max<int64_t>(stripes[s], plan.local.sink);
      const int64_t stripe_end = std::min(stripes[s] + plan.stripe_width, end);
      for (int64_t j = begin; j < stripe_end; ++j) keys.push_back(static_cast<int32_t>(j));
      if (stripes[s] >= end) break;
    }
    return keys;
  }

  void AddStripes() {
    const std::vector<int32_t>& keys = StripeKeys();
    const int64_t n_keys = static_cast<int64_t>(keys.size());
    for (int64_t begin = 0; begin < n_keys;) {
      const int64_t n = KeysOfOneChunk(keys.data() + begin, std::min(kTileKeys, n_keys - begin));
      AddStripeTile(keys.data() + begin, n, n_keys - begin);
      begin += n;
    }
  }

  // How many of n ascending keys are in the chunk of the first one.
  int64_t KeysOfOneChunk(const int32_t* keys, int64_t n) const {
    const int64_t chunk_tokens = args_.dual.chunk_tokens;
    if (chunk_tokens == 0) return n;
    const int64_t end = (keys[0] / chunk_tokens + 1) * chunk_tokens;
    return std::lower_bound(keys, keys + n, end) - keys;
  }

  void AddStripeTile(const int32_t* keys, int64_t n, int64_t n_left) {
    const int64_t row_begin = RowAt(keys[0] + runs_.front().end);
    scratch_.tile.Gather(args_.kv, kv_head_, keys, n, n_left);
    uint64_t* visible = block_.visible();
    bool masked = n < kTileKeys;
    std::fill(visible + row_begin, visible + block_.n_rows(), LowBits(n));
    for (const DistanceRun& run : runs_) {
      masked |= HideRun(run, keys, n, row_begin, RowAt(keys[n - 1] + run.end));
    }
    AttendRows(scratch_.tile, block_, row_begin, block_.n_rows(), masked);
  }

  // Hides keys at a distance inside the run from rows [row_begin, row_end); rows further on are
  // past the run. Keys ascend, so what a row hides is a range of columns whose two ends only move
  // forward with the row. Keys after the row itself are hidden with the window.
  bool HideRun(DistanceRun run, const int32_t* keys, int64_t n, int64_t row_begin,
               int64_t row_end) {
    row_begin = std::max(row_begin, RowAt(keys[0] + run.begin));
    const bool window = run.begin == 0;
    int64_t hidden_begin = 0;  // keys [0, hidden_begin) are beyond the run
    int64_t hidden_end = 0;
    for (int64_t r = row_begin; r < row_end; ++r) {
      const int64_t position = first_ + r;
      while (hidden_begin < n && position - keys[hidden_begin] >= run.end) ++hidden_begin;
      while (hidden_end < n && position - keys[hidden_end] >= run.begin) ++hidden_end;
      block_.visible()[r] &=
          window ? LowBits(hidden_begin) : LowBits(hidden_begin) | ~LowBits(hidden_end);
    }
    return row_begin < row_end;
  }

  void Finish() {
    for (int64_t r = 0; r < block_.n_rows(); ++r) {
      const int64_t token = item_.row_begin + r;
      const RowStates state = block_.states(r);
      args_.lse.Row<float>(token)[item_.head] =
          cpu::FinishRow(*state.max, state.sum, block_.o(r), args_.kv.head_dim,
                         args_.out.Row<float>(token) + item_.head * args_.out.stride(1));
    }
  }

  const AttendSparseArgs& args_;
  const SparseItem& item_;
  const std::vector<DistanceRun>& runs_;
  const int64_t kv_head_;
  const int64_t first_;  // position of the first row
  const int64_t last_;   // position of the last row
  ThreadScratch& scratch_;
  RowBlock& block_;
};

// Work items of all heads. Dense heads of a kv group share items.
struct SparseWork {
  std::vector<std::vector<DistanceRun>> runs;  // [H]
  std::vector<int32_t> dense_heads;            // [H] capacity, items point into it
  std::vector<DenseItem> dense;
  std::vector<SparseItem> sparse;
};

void PlanSparseHead(const AttendSparseArgs& args, int64_t head, SparseWork& work) {
  const int64_t n_tokens = args.q.dim(0);
  work.runs[head] = RunsOf(args.plan, head);
  for (int64_t begin = 0; begin < n_tokens; begin += kSparseBlockRows) {
    work.sparse.push_back({.head = head,
                           .row_begin = begin,
                           .row_end = std::min(begin + kSparseBlockRows, n_tokens),
                           .runs = &work.runs[head]});
  }
}

SparseWork PlanWork(const AttendSparseArgs& args, int n_threads) {
  const int64_t n_tokens = args.q.dim(0);
  const int64_t n_heads = args.q.dim(1);
  const int64_t group = n_heads / args.kv.n_kv_heads;
  SparseWork work;
  work.runs.resize(n_heads);
  work.dense_heads.reserve(n_heads);
  for (int64_t kv_head = 0; kv_head < args.kv.n_kv_heads; ++kv_head) {
    const size_t first_dense = work.dense_heads.size();
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      if (static_cast<HeadKind>(args.plan.kind[head]) == HeadKind::kDense) {
        work.dense_heads.push_back(static_cast<int32_t>(head));
      } else {
        PlanSparseHead(args, head, work);
      }
    }
    const int64_t n_dense = static_cast<int64_t>(work.dense_heads.size() - first_dense);
    if (n_dense == 0) continue;
    const int64_t block = cpu::DenseBlockTokens(n_tokens, n_dense, args.kv.n_kv_heads, n_threads);
    for (int64_t begin = 0; begin < n_tokens; begin += block) {
      work.dense.push_back({.kv_head = kv_head,
                            .row_begin = begin,
                            .row_end = std::min(begin + block, n_tokens),
                            .heads = work.dense_heads.data() + first_dense,
                            .n_heads = n_dense});
    }
  }
  // Largest first, so that no thread ends on a long item.
  std::stable_sort(
      work.dense.begin(), work.dense.end(),
      [](const DenseItem& a, const DenseItem& b) { return a.row_begin > b.row_begin; });
  const auto keys_of = [&args](const SparseItem& item) {
    const bool sparse = static_cast<HeadKind>(args.plan.kind[item.head]) == HeadKind::kSparse;
    return sparse ? args.plan.n_stripes[item.head] * args.plan.stripe_width : 0;
  };
  std::stable_sort(
      work.sparse.begin(), work.sparse.end(),
      [&](const SparseItem& a, const SparseItem& b) { return keys_of(a) > keys_of(b); });
  return work;
}

}  // namespace

void CpuAttention::AttendSparse(const AttendSparseArgs& args) {
  const int64_t n_tokens = args.q.dim(0);
  if (n_tokens == 0) return;
  LH_CHECK(args.q_begin >= 0 && args.q_begin + n_tokens <= args.kv.n_tokens);
  const SparseWork work = PlanWork(args, pool_->n_threads());
  const cpu::DenseTensors dense{.q = args.q,
                                .dual = args.dual,
                                .q_begin = args.q_begin,
                                .kv = args.kv,
                                .scale = args.scale,
                                .out = args.out,
                                .lse = args.lse};
  const int64_t n_dense = static_cast<int64_t>(work.dense.size());
  const int64_t n_items = n_dense + static_cast<int64_t>(work.sparse.size());
  pool_->ParallelFor(n_items, [&](int64_t i, int thread) {
    ThreadScratch& scratch = scratch_->threads[thread];
    if (i < n_dense) {
      RunDenseItem(dense, work.dense[i], scratch);
    } else {
      SparseRows(args, work.sparse[i - n_dense], scratch).Run();
    }
  });
}

}  // namespace longhaul
