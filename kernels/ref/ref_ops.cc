#include "kernels/ref/ref_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/base/fp8.h"
#include "kernels/check_args.h"

namespace longhaul::ref {

float LoadElement(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[i];
    case DType::kBF16:
      return ToF32(static_cast<const BF16*>(data)[i]);
    case DType::kF16:
      return ToF32(static_cast<const F16*>(data)[i]);
    case DType::kF8E4M3:
    case DType::kI32:
    case DType::kU8:
      break;
  }
  LH_CHECK(dtype == DType::kF32);
  return 0;
}

void LoadKvRow(const KvView& kv, std::byte* block, int64_t slot, float* x) {
  const std::byte* row = block + slot * kv.RowBytes();
  if (kv.dtype == DType::kF32) {
    std::memcpy(x, row, kv.RowBytes());
  } else if (kv.dtype == DType::kBF16) {
    for (int64_t d = 0; d < kv.head_dim; ++d) x[d] = ToF32(reinterpret_cast<const BF16*>(row)[d]);
  } else {
    const float factor = RowFactorF8(kv.RowScales(block)[slot]);
    for (int64_t d = 0; d < kv.head_dim; ++d) {
      x[d] = factor * ToF32(reinterpret_cast<const F8E4M3*>(row)[d]);
    }
  }
}

void Embed(const EmbedArgs& args) {
  CheckArgs(args);
  const TensorView& table = args.table;
  for (int64_t t = 0; t < args.out.dim(0); ++t) {
    const int64_t token = args.token_ids[t];
    LH_CHECK(0 <= token && token < table.dim(0));
    const auto* row = static_cast<const std::byte*>(table.data()) +
                      token * table.stride(0) * static_cast<int64_t>(DTypeBytes(table.dtype()));
    float* out = args.out.Row<float>(t);
    for (int64_t e = 0; e < table.dim(1); ++e) out[e] = LoadElement(row, table.dtype(), e);
  }
}

void RmsNorm(const RmsNormArgs& args) {
  CheckArgs(args);
  const int64_t n = args.weight.dim(0);
  const int64_t n_heads = args.x.rank() == 3 ? args.x.dim(1) : 1;
  const float* weight = args.weight.As<float>();
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t h = 0; h < n_heads; ++h) {
      const float* x = args.x.Row<float>(t) + h * n;
      float* out = args.out.Row<float>(t) + h * n;
      double sum_of_squares = 0;
      for (int64_t i = 0; i < n; ++i) sum_of_squares += double{x[i]} * x[i];
      const double inverse = 1.0 / std::sqrt(sum_of_squares / static_cast<double>(n) + args.eps);
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i] * inverse * weight[i]);
    }
  }
}

std::vector<float> RoundRows(float* x, int64_t n_rows, int64_t n, WeightFormat format) {
  std::vector<float> scales;
  if (format == WeightFormat::kBF16) {
    for (int64_t i = 0; i < n_rows * n; ++i) x[i] = ToF32(ToBF16(x[i]));
  } else if (format == WeightFormat::kInt8) {
    for (int64_t r = 0; r < n_rows; ++r) scales.push_back(QuantizeRow(x + r * n, n));
  }
  return scales;
}

void Linear(const LinearArgs& args, const WeightMatrix& weight) {
  CheckArgs(args);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    std::vector<float> x(args.x.Row<float>(t), args.x.Row<float>(t) + weight.n_in);
    const std::vector<float> x_scale = RoundRows(x.data(), 1, weight.n_in, weight.format);
    float* y = args.y.Row<float>(t);
    for (int64_t o = 0; o < weight.n_out; ++o) {
      const float* w = weight.data + o * weight.n_in;
      double sum = 0;
      for (int64_t i = 0; i < weight.n_in; ++i) sum += double{x[i]} * w[i];
      if (!x_scale.empty()) sum *= double{x_scale[0]} * weight.scales[o];
      if (!args.bias.empty()) sum += args.bias.As<float>()[o];
      y[o] = static_cast<float>(args.accumulate ? y[o] + sum : sum);
    }
  }
}

void SwiGlu(const SwiGluArgs& args) {
  CheckArgs(args);
  const int64_t n = args.out.dim(1);
  for (int64_t t = 0; t < args.out.dim(0); ++t) {
    const float* gate = args.gate_up.Row<float>(t);
    const float* up = gate + n;
    float* out = args.out.Row<float>(t);
    for (int64_t i = 0; i < n; ++i) {
      const double g = gate[i];
      out[i] = static_cast<float>(g / (1.0 + std::exp(-g)) * up[i]);
    }
  }
}

void RouteExperts(const RouteExpertsArgs& args) {
  CheckArgs(args);
  const int64_t n_experts = args.logits.dim(1);
  const int64_t n_chosen = args.weights.dim(1);
  for (int64_t t = 0; t < args.logits.dim(0); ++t) {
    const float* logits = args.logits.Row<float>(t);
    std::vector<int32_t> order(n_experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    double total = 0;
    for (int64_t i = 0; i < (args.renormalize ? n_chosen : n_experts); ++i) {
      total += std::exp(double{logits[order[i]]} - logits[order[0]]);
    }
    for (int64_t i = 0; i < n_chosen; ++i) {
      const double share = std::exp(double{logits[order[i]]} - logits[order[0]]) / total;
      args.experts.Row<int32_t>(t)[i] = order[i];
      args.weights.Row<float>(t)[i] = static_cast<float>(share);
    }
  }
}

void GatherRows(const GatherRowsArgs& args) {
  CheckArgs(args);
  for (int64_t i = 0; i < args.out.dim(0); ++i) {
    LH_CHECK(0 <= args.rows[i] && args.rows[i] < args.x.dim(0));
    std::copy_n(args.x.Row<float>(args.rows[i]), args.x.dim(1), args.out.Row<float>(i));
  }
}

void ScatterAddRows(const ScatterAddRowsArgs& args) {
  CheckArgs(args);
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    LH_CHECK(0 <= args.rows[i] && args.rows[i] < args.out.dim(0));
    const float* x = args.x.Row<float>(i);
    float* out = args.out.Row<float>(args.rows[i]);
    for (int64_t e = 0; e < args.x.dim(1); ++e) out[e] += args.weights[i] * x[e];
  }
}

void RopeTable(const RopeTableArgs& args) {
  CheckArgs(args);
  const int64_t n_pairs = args.cos_sin.dim(1);
  for (int64_t t = 0; t < args.cos_sin.dim(0); ++t) {
    float* row = args.cos_sin.Row<float>(t);
    for (int64_t i = 0; i < n_pairs; ++i) {
      const double angle = static_cast<double>(args.positions[t]) * args.inv_freq[i];
      row[2 * i] = static_cast<float>(args.scale * std::cos(angle));
      row[2 * i + 1] = static_cast<float>(args.scale * std::sin(angle));
    }
  }
}

namespace {

void Rotate(float* x, const float* cos_sin, int64_t n_pairs) {
  for (int64_t i = 0; i < n_pairs; ++i) {
    const double c = cos_sin[2 * i];
    const double s = cos_sin[2 * i + 1];
    const double a = x[i];
    const double b = x[i + n_pairs];
    x[i] = static_cast<float>(a * c - b * s);
    x[i + n_pairs] = static_cast<float>(b * c + a * s);
  }
}

// `block`: keys or values of a page.
void StoreKvRow(const KvView& kv, std::byte* block, int64_t slot, const float* x) {
  const int64_t n = kv.head_dim;
  std::byte* row = block + slot * kv.RowBytes();
  if (kv.dtype == DType::kF32) {
    std::memcpy(row, x, n * sizeof(float));
  } else if (kv.dtype == DType::kBF16) {
    for (int64_t i = 0; i < n; ++i) reinterpret_cast<BF16*>(row)[i] = ToBF16(x[i]);
  } else {
    kv.RowScales(block)[slot] = RoundRowF8(x, n, reinterpret_cast<F8E4M3*>(row));
  }
}

}  // namespace

void RopeKvWrite(const RopeKvWriteArgs& args) {
  if (args.q.dim(0) == 0) return;
  CheckArgs(args);
  const int64_t head_dim = args.q.dim(2);
  const int64_t n_pairs = args.cos_sin.dim(1);
  for (int64_t t = 0; t < args.q.dim(0); ++t) {
    const float* cos_sin = args.cos_sin.Row<float>(t);
    for (int64_t h = 0; h < args.q.dim(1); ++h) {
      float* q = args.q.Row<float>(t) + h * head_dim;
      if (!args.dual.next.empty()) {
        for (int64_t d = 0; d < head_dim; ++d) q[d] *= args.dual.q_scale[t];
        float* next = args.dual.next.Row<float>(t) + h * head_dim;
        float* far = args.dual.far.Row<float>(t) + h * head_dim;
        std::copy_n(q, head_dim, next);
        std::copy_n(q, head_dim, far);
        Rotate(next, args.dual.next_cos_sin.Row<float>(t), n_pairs);
        Rotate(far, args.dual.far_cos_sin.Row<float>(t), n_pairs);
      }
      Rotate(q, cos_sin, n_pairs);
    }
    const KvView& kv = args.kvs[t / args.rows_per_kv];
    const int64_t position = args.positions[t];
    LH_CHECK(0 <= position && position < kv.n_tokens);
    const int64_t page = position / kPageTokens;
    const int64_t slot = position % kPageTokens;
    for (int64_t h = 0; h < kv.n_kv_heads; ++h) {
      float* k = args.k.Row<float>(t) + h * head_dim;
      Rotate(k, cos_sin, n_pairs);
      StoreKvRow(kv, kv.Keys(page, h), slot, k);
      StoreKvRow(kv, kv.Values(page, h), slot, args.v.Row<float>(t) + h * head_dim);
    }
  }
}

void CopyPages(const CopyPagesArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    if (args.src[i] == args.dst[i]) continue;
    std::memcpy(args.pool + args.dst[i] * args.page_bytes,
                args.pool + args.src[i] * args.page_bytes, args.page_bytes);
  }
}

}  // namespace longhaul::ref
