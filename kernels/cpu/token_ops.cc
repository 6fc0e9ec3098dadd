#include "kernels/cpu/token_ops.h"

#include <cmath>
#include <cstring>

#include "kernels/base/fp8.h"
#include "kernels/check_args.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/parallel_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/token_ops.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace longhaul::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// out = x / rms(x) * weight, all [n]. Two accumulators: one leaves the FMA unit half idle, four
// were no faster on rows of 4096.
void RmsNormRow(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto x0 = hn::LoadU(d, x + i);
    const auto x1 = hn::LoadU(d, x + i + lanes);
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < n; ++i) sum += x[i] * x[i];

  const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
  const auto inverse_v = hn::Set(d, inverse);
  for (i = 0; i + lanes <= n; i += lanes) {
    const auto normed = hn::Mul(hn::LoadU(d, x + i), inverse_v);
    hn::StoreU(hn::Mul(normed, hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

// silu(gate) * up. exp(-gate) is capped: beyond 88 it leaves f32, and silu is 0 within 1e-36 there.
template <class D, class V = hn::Vec<D>>
V SiluMul(D d, V gate, V up) {
  const V exponent = hn::Min(hn::Neg(gate), hn::Set(d, 88.0f));
  const V denominator = hn::Add(hn::Set(d, 1.0f), hn::Exp(d, exponent));
  return hn::Mul(hn::Div(gate, denominator), up);
}

void SwiGluRow(const float* gate, const float* up, int64_t n, float* out) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(SiluMul(d, hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, out + i);
  }
  const hn::CappedTag<float, 1> d1;
  for (; i < n; ++i) {
    hn::StoreU(SiluMul(d1, hn::LoadU(d1, gate + i), hn::LoadU(d1, up + i)), d1, out + i);
  }
}

// Rotates the pairs (x[i], x[i + n_pairs]) of adjacent heads. At most 8 lanes: the halves of every
// usual head_dim (64, 80, 96, 128) are multiples of 8, so nothing is left over.
void RotateHeads(float* x, const float* cos_sin, int64_t n_heads, int64_t head_dim,
                 int64_t n_pairs) {
  const hn::CappedTag<float, 8> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t h = 0; h < n_heads; ++h) {
    float* lower = x + h * head_dim;
    float* upper = lower + n_pairs;
    int64_t i = 0;
    for (; i + lanes <= n_pairs; i += lanes) {
      hn::Vec<decltype(d)> c, s;
      hn::LoadInterleaved2(d, cos_sin + 2 * i, c, s);
      const auto a = hn::LoadU(d, lower + i);
      const auto b = hn::LoadU(d, upper + i);
      hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, lower + i);
      hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), d, upper + i);
    }
    for (; i < n_pairs; ++i) {
      const float c = cos_sin[2 * i];
      const float s = cos_sin[2 * i + 1];
      const float a = lower[i];
      const float b = upper[i];
      lower[i] = a * c - b * s;
      upper[i] = b * c + a * s;
    }
  }
}

}  // namespace longhaul::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::cpu {

HWY_EXPORT(RmsNormRow);
HWY_EXPORT(SwiGluRow);
HWY_EXPORT(RotateHeads);

namespace {

// `block`: keys or values of a page.
void StoreKvRow(const KvView& kv, std::byte* block, int64_t slot, const float* x) {
  const int64_t n = kv.head_dim;
  std::byte* row = block + slot * kv.RowBytes();
  if (kv.dtype == DType::kF32) {
    std::memcpy(row, x, n * sizeof(float));
  } else if (kv.dtype == DType::kBF16) {
    RoundToBF16(x, n, reinterpret_cast<BF16*>(row));
  } else {
    kv.RowScales(block)[slot] = RoundRowF8(x, n, reinterpret_cast<F8E4M3*>(row));
  }
}

void RopeKvWriteRow(const RopeKvWriteArgs& args, int64_t t) {
  const auto rotate = HWY_DYNAMIC_DISPATCH(RotateHeads);
  const KvView& kv = args.kvs[t / args.rows_per_kv];
  const int64_t position = args.positions[t];
  LH_CHECK(0 <= position && position < kv.n_tokens);
  const int64_t head_dim = kv.head_dim;
  const float* cos_sin = args.cos_sin.Row<float>(t);
  float* k = args.k.Row<float>(t);
  const float* v = args.v.Row<float>(t);
  const int64_t n_pairs = args.cos_sin.dim(1);
  float* q = args.q.Row<float>(t);
  const int64_t n_heads = args.q.dim(1);
  if (const DualChunkRope& dual = args.dual; !dual.next.empty()) {
    const int64_t n = n_heads * head_dim;
    for (int64_t i = 0; i < n; ++i) q[i] *= dual.q_scale[t];
    float* next = std::copy_n(q, n, dual.next.Row<float>(t)) - n;
    float* far = std::copy_n(q, n, dual.far.Row<float>(t)) - n;
    rotate(next, dual.next_cos_sin.Row<float>(t), n_heads, head_dim, n_pairs);
    rotate(far, dual.far_cos_sin.Row<float>(t), n_heads, head_dim, n_pairs);
  }
  rotate(q, cos_sin, n_heads, head_dim, n_pairs);
  rotate(k, cos_sin, kv.n_kv_heads, head_dim, n_pairs);
  const int64_t page = position / kPageTokens;
  const int64_t slot = position % kPageTokens;
  for (int64_t h = 0; h < kv.n_kv_heads; ++h) {
    StoreKvRow(kv, kv.Keys(page, h), slot, k + h * head_dim);
    StoreKvRow(kv, kv.Values(page, h), slot, v + h * head_dim);
  }
}

}  // namespace

void Embed(const EmbedArgs& args, ThreadPool& pool) {
  CheckArgs(args);
  const TensorView& table = args.table;
  const int64_t width = table.dim(1);
  const int64_t row_bytes = table.stride(0) * static_cast<int64_t>(DTypeBytes(table.dtype()));
  ParallelRows(pool, args.out.dim(0), width, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t token = args.token_ids[t];
      LH_CHECK(0 <= token && token < table.dim(0));
      const std::byte* row = static_cast<const std::byte*>(table.data()) + token * row_bytes;
      WidenToF32(row, table.dtype(), width, args.out.Row<float>(t));
    }
  });
}

void RmsNormRow(const RmsNormArgs& args, int64_t t, float* out) {
  const float* weight = args.weight.As<float>();
  const int64_t width = args.weight.dim(0);
  const int64_t n_heads = args.x.rank() == 3 ? args.x.dim(1) : 1;
  const float* x = args.x.Row<float>(t);
  for (int64_t i = 0; i < n_heads * width; i += width) {
    HWY_DYNAMIC_DISPATCH(RmsNormRow)(x + i, weight, args.eps, width, out + i);
  }
}

void SwiGluRow(const SwiGluArgs& args, int64_t t, float* out) {
  const int64_t width = args.out.dim(1);
  const float* gate = args.gate_up.Row<float>(t);
  HWY_DYNAMIC_DISPATCH(SwiGluRow)(gate, gate + width, width, out);
}

void RmsNorm(const RmsNormArgs& args, ThreadPool& pool) {
  CheckArgs(args);
  const int64_t width = args.x.rank() == 3 ? args.x.dim(1) * args.x.dim(2) : args.x.dim(1);
  ParallelRows(pool, args.x.dim(0), width, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) RmsNormRow(args, t, args.out.Row<float>(t));
  });
}

void SwiGlu(const SwiGluArgs& args, ThreadPool& pool) {
  CheckArgs(args);
  ParallelRows(pool, args.out.dim(0), 3 * args.out.dim(1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) SwiGluRow(args, t, args.out.Row<float>(t));
  });
}

void RopeTable(const RopeTableArgs& args, ThreadPool& pool) {
  CheckArgs(args);
  const int64_t n_pairs = args.cos_sin.dim(1);
  // libm in f64: Highway's Sin and Cos end at 39000 radians, a long prompt goes on to millions.
  // Once per epoch for all layers, so 30 ns per element do not show.
  constexpr int64_t kElementsPerSinCos = 64;
  ParallelRows(pool, args.cos_sin.dim(0), n_pairs * kElementsPerSinCos,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) {
                   float* row = args.cos_sin.Row<float>(t);
                   for (int64_t i = 0; i < n_pairs; ++i) {
                     const double angle = static_cast<double>(args.positions[t]) * args.inv_freq[i];
                     row[2 * i] = static_cast<float>(args.scale * std::cos(angle));
                     row[2 * i + 1] = static_cast<float>(args.scale * std::sin(angle));
                   }
                 }
               });
}

void RopeKvWrite(const RopeKvWriteArgs& args, ThreadPool& pool) {
  if (args.q.dim(0) == 0) return;
  CheckArgs(args);
  const int64_t row_elements = (args.q.dim(1) + 2 * args.k.dim(1)) * args.q.dim(2);
  ParallelRows(pool, args.q.dim(0), row_elements, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) RopeKvWriteRow(args, t);
  });
}

void CopyPages(const CopyPagesArgs& args, ThreadPool& pool) {
  ParallelRows(pool, args.n, args.page_bytes / 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (args.src[i] == args.dst[i]) continue;
      std::memcpy(args.pool + args.dst[i] * args.page_bytes,
                  args.pool + args.src[i] * args.page_bytes, args.page_bytes);
    }
  });
}

}  // namespace longhaul::cpu
#endif  // HWY_ONCE
