// Attention by definition: for one row at a time all scores, their maximum, their softmax, in f64.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/check_args.h"
#include "kernels/ref/ref_ops.h"

namespace longhaul::ref {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

bool IsLocal(const LocalPattern& local, int64_t row, int64_t key) {
  return key < local.sink || row - key < local.window;
}

// One query in the form that meets each key.
struct Query {
  const TensorView& q;  // [T, H, D]
  const DualChunkQueries& dual;
  int64_t t = 0;
  int64_t head = 0;
  int64_t position = 0;

  const float* For(int64_t key) const {
    int64_t distance = 0;
    if (dual.chunk_tokens > 0) distance = position / dual.chunk_tokens - key / dual.chunk_tokens;
    const TensorView& form = distance == 0 ? q : distance == 1 ? dual.next : dual.far;
    return form.Row<float>(t) + head * form.dim(2);
  }
};

// The scaled scores of one query against keys [0, position], and what follows from them.
class Row {
 public:
  Row(const Query& query, const KvView& kv, int64_t kv_head, double scale)
      : kv_(kv), kv_head_(kv_head), scores_(query.position + 1) {
    std::vector<float> k(kv.head_dim);
    for (int64_t key = 0; key <= query.position; ++key) {
      const float* q = query.For(key);
      LoadKvRow(kv, kv.Keys(key / kPageTokens, kv_head), key % kPageTokens, k.data());
      double sum = 0;
      for (int64_t d = 0; d < kv.head_dim; ++d) sum += double{q[d]} * k[d];
      scores_[key] = sum * scale;
    }
  }

  int64_t n_keys() const { return static_cast<int64_t>(scores_.size()); }
  double score(int64_t key) const { return scores_[key]; }

  // Natural log-sum-exp over the keys that kept(key) admits; -inf when there are none.
  template <typename Kept>
  double Lse(const Kept& kept) const {
    double max = kMinusInfinity;
    for (int64_t key = 0; key < n_keys(); ++key) {
      if (kept(key)) max = std::max(max, scores_[key]);
    }
    if (max == kMinusInfinity) return max;
    double sum = 0;
    for (int64_t key = 0; key < n_keys(); ++key) {
      if (kept(key)) sum += std::exp(scores_[key] - max);
    }
    return max + std::log(sum);
  }

  // out [D] = softmax over the kept keys times V. Returns their log-sum-exp.
  template <typename Kept>
  double Attend(const Kept& kept, float* out) const {
    const double lse = Lse(kept);
    std::vector<double> sum(kv_.head_dim, 0.0);
    std::vector<float> v(kv_.head_dim);
    for (int64_t key = 0; key < n_keys(); ++key) {
      if (!kept(key)) continue;
      const double p = std::exp(scores_[key] - lse);
      LoadKvRow(kv_, kv_.Values(key / kPageTokens, kv_head_), key % kPageTokens, v.data());
      for (int64_t d = 0; d < kv_.head_dim; ++d) sum[d] += p * v[d];
    }
    for (int64_t d = 0; d < kv_.head_dim; ++d) out[d] = static_cast<float>(sum[d]);
    return lse;
  }

 private:
  const KvView& kv_;
  int64_t kv_head_;
  std::vector<double> scores_;
};

const auto kAllKeys = [](int64_t) { return true; };

// The keys that a row at `position` sees through a sliding window; 0: all.
auto InWindow(int64_t window, int64_t position) {
  return [=](int64_t key) { return window == 0 || key > position - window; };
}

// Query head `head` of row `t` of q, at token `position`: it sees keys [0, position].
template <typename Args>
Row MakeRow(const Args& args, int64_t t, int64_t head, int64_t position, const KvView& kv) {
  const int64_t group = args.q.dim(1) / kv.n_kv_heads;
  return Row({.q = args.q, .dual = args.dual, .t = t, .head = head, .position = position}, kv,
             head / group, args.scale);
}

}  // namespace

void AttendDense(const AttendDenseArgs& args) {
  CheckArgs(args);
  const int64_t head_dim = args.kv.head_dim;
  for (int64_t t = 0; t < args.q.dim(0); ++t) {
    for (int64_t h = 0; h < args.q.dim(1); ++h) {
      if (args.head_mask != nullptr && !args.head_mask[h]) continue;
      const Row row = MakeRow(args, t, h, args.q_begin + t, args.kv);
      const double lse = row.Attend(InWindow(args.window, args.q_begin + t),
                                    args.out.Row<float>(t) + h * head_dim);
      if (!args.lse.empty()) args.lse.Row<float>(t)[h] = static_cast<float>(lse);
    }
  }
}

void AttendDecode(const AttendDecodeArgs& args) {
  CheckArgs(args);
  for (int64_t b = 0; b < args.q.dim(0); ++b) {
    const KvView& kv = args.kvs[b];
    for (int64_t h = 0; h < args.q.dim(1); ++h) {
      const Row row = MakeRow(args, b, h, kv.n_tokens - 1, kv);
      row.Attend(InWindow(args.window, kv.n_tokens - 1), args.out.Row<float>(b) + h * kv.head_dim);
    }
  }
}

void AttendSparse(const AttendSparseArgs& args) {
  CheckArgs(args);
  const SparsePlan& plan = args.plan;
  const int64_t head_dim = args.kv.head_dim;
  const int64_t n_keys = args.q_begin + args.q.dim(0);
  for (int64_t h = 0; h < args.q.dim(1); ++h) {
    const auto kind = static_cast<HeadKind>(plan.kind[h]);
    std::vector<bool> in_stripe(n_keys, false);
    std::vector<bool> in_band(n_keys / kBandWidth + 1, false);
    if (kind == HeadKind::kSparse) {
      for (int64_t s = 0; s < plan.n_stripes[h]; ++s) {
        const int64_t begin = plan.stripes[h * plan.max_stripes + s];
        const int64_t end = std::min(begin + plan.stripe_width, n_keys);
        for (int64_t key = begin; key < end; ++key) in_stripe[key] = true;
      }
      for (int64_t b = 0; b < plan.n_bands[h]; ++b) {
        in_band[plan.bands[h * plan.max_bands + b]] = true;
      }
    }
    for (int64_t t = 0; t < args.q.dim(0); ++t) {
      const int64_t i = args.q_begin + t;
      const auto kept = [&](int64_t key) {
        return kind == HeadKind::kDense || IsLocal(plan.local, i, key) || in_stripe[key] ||
               in_band[(i - key) / kBandWidth];
      };
      const Row row = MakeRow(args, t, h, args.q_begin + t, args.kv);
      const double lse = row.Attend(kept, args.out.Row<float>(t) + h * head_dim);
      args.lse.Row<float>(t)[h] = static_cast<float>(lse);
    }
  }
}

void SampleLse(const SampleLseArgs& args) {
  CheckArgs(args);
  for (int64_t h = 0; h < args.q.dim(1); ++h) {
    for (int64_t r = 0; r < args.n_rows; ++r) {
      const int64_t t = args.rows[r];
      LH_CHECK(0 <= t && t < args.q.dim(0));
      const Row row = MakeRow(args, t, h, args.q_begin + t, args.kv);
      const auto local = [&](int64_t key) { return IsLocal(args.local, args.q_begin + t, key); };
      args.lse_full.Row<float>(h)[r] = static_cast<float>(row.Lse(kAllKeys));
      args.lse_local.Row<float>(h)[r] = static_cast<float>(row.Lse(local));
    }
  }
}

void SampleMass(const SampleMassArgs& args) {
  CheckArgs(args);
  const int64_t group = args.q.dim(1) / args.kv.n_kv_heads;
  const int64_t n_keys = args.mass_sum.dim(1);
  for (int64_t h = args.kv_head_begin * group; h < args.kv_head_end * group; ++h) {
    if (args.choice != nullptr && args.choice[h] == kChosen) continue;
    const int64_t out_row = h - args.kv_head_begin * group;
    std::vector<double> sum(n_keys, 0.0);
    std::vector<double> max(n_keys, 0.0);
    std::vector<double> band(n_keys / kBandWidth + 1, 0.0);
    for (int64_t r = 0; r < args.n_voting; ++r) {
      const int64_t t = args.rows[r];
      const int64_t i = args.q_begin + t;
      const double lse = args.lse_full.Row<float>(h)[r];
      const Row row = MakeRow(args, t, h, args.q_begin + t, args.kv);
      for (int64_t key = 0; key < row.n_keys(); ++key) {
        if (args.scope == MassScope::kRemote && IsLocal(args.local, i, key)) continue;
        const double p = std::exp(row.score(key) - lse);
        sum[key] += p;
        max[key] = std::max(max[key], p);
        band[(i - key) / kBandWidth] += p;
      }
    }
    std::copy(sum.begin(), sum.end(), args.mass_sum.Row<float>(out_row));
    std::copy(max.begin(), max.end(), args.mass_max.Row<float>(out_row));
    if (!args.band_mass.empty()) {
      std::copy_n(band.begin(), args.band_mass.dim(1), args.band_mass.Row<float>(out_row));
    }
  }
}

}  // namespace longhaul::ref
