#include "kernels/cpu/expert_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/check_args.h"
#include "kernels/cpu/parallel_rows.h"

namespace longhaul::cpu {
namespace {

// Insertion into the few best so far: a row has some hundred experts at most and chooses 2 to 8.
void RouteRow(const RouteExpertsArgs& args, int64_t t) {
  const int64_t n_experts = args.logits.dim(1);
  const int64_t n_chosen = args.weights.dim(1);
  const float* logits = args.logits.Row<float>(t);
  int32_t* experts = args.experts.Row<int32_t>(t);
  float* weights = args.weights.Row<float>(t);  // logits of the chosen until the end
  int64_t n = 0;
  for (int64_t x = 0; x < n_experts; ++x) {
    int64_t at = n;
    while (at > 0 && logits[x] > weights[at - 1]) --at;
    if (at == n_chosen) continue;
    n = std::min(n + 1, n_chosen);
    std::copy_backward(experts + at, experts + n - 1, experts + n);
    std::copy_backward(weights + at, weights + n - 1, weights + n);
    experts[at] = static_cast<int32_t>(x);
    weights[at] = logits[x];
  }
  const float top = weights[0];
  float total = 0;
  if (!args.renormalize) {
    for (int64_t x = 0; x < n_experts; ++x) total += std::exp(logits[x] - top);
  }
  for (int64_t i = 0; i < n_chosen; ++i) {
    weights[i] = std::exp(weights[i] - top);
    if (args.renormalize) total += weights[i];
  }
  for (int64_t i = 0; i < n_chosen; ++i) weights[i] /= total;
}

}  // namespace

void RouteExperts(const RouteExpertsArgs& args, ThreadPool& pool) {
  CheckArgs(args);
  constexpr int64_t kElementsPerExp = 8;
  ParallelRows(pool, args.logits.dim(0), args.logits.dim(1) * kElementsPerExp,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) RouteRow(args, t);
               });
}

void GatherRows(const GatherRowsArgs& args, ThreadPool& pool) {
  CheckArgs(args);
  const int64_t width = args.x.dim(1);
  ParallelRows(pool, args.out.dim(0), width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      LH_CHECK(0 <= args.rows[i] && args.rows[i] < args.x.dim(0));
      std::memcpy(args.out.Row<float>(i), args.x.Row<float>(args.rows[i]), width * sizeof(float));
    }
  });
}

void ScatterAddRows(const ScatterAddRowsArgs& args, ThreadPool& pool) {
  CheckArgs(args);
  const int64_t width = args.x.dim(1);
  ParallelRows(pool, args.x.dim(0), 2 * width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      LH_CHECK(0 <= args.rows[i] && args.rows[i] < args.out.dim(0));
      const float weight = args.weights[i];
      const float* __restrict x = args.x.Row<float>(i);
      float* __restrict out = args.out.Row<float>(args.rows[i]);
      for (int64_t e = 0; e < width; ++e) out[e] += weight * x[e];
    }
  });
}

}  // namespace longhaul::cpu
