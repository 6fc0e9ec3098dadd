// Ops of kernels/cpu attention against kernels/ref: the reference, which is slow, runs once for
// given arguments, ours on every instruction set of this machine. Outputs need not be set.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "hwy/targets.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/decode_tile.h"
#include "kernels/ref/ref_ops.h"
#include "tests/kernels/attention_cpu_fixture.h"

namespace longhaul::testing_attention {

inline constexpr float kTolerance = 2e-5f;
// Of outputs whose weights were rounded to bf16: each is off by up to 2^-8 of itself, as root mean
// square 0.41 x 2^-8, and so is a sum over random values. Rounded queries add as much to scores of
// size 1: 0.59.
inline constexpr double kPairRms = 0x1p-8;

// What this machine runs, of the sets that attention_tile.cc is compiled for.
inline std::vector<int64_t> Targets() {
  std::vector<int64_t> targets;
  for (int64_t target : {HWY_SSE4, HWY_AVX2, HWY_AVX3}) {
    if (hwy::SupportedTargets() & target) targets.push_back(target);
  }
  return targets;
}

class AttentionAgainstRef : public ::testing::Test {
 protected:
  template <typename Body>
  static void ForEachTarget(const Body& body) {
    for (int64_t target : Targets()) {
      SCOPED_TRACE(hwy::TargetName(target));
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      ASSERT_STREQ(cpu::TileTargetName(), hwy::TargetName(target));
      body();
      hwy::SetSupportedTargetsForTest(0);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    }
  }

  // out_tolerance: of `out`; scores in the hundreds carry their own rounding into the exponent.
  void ExpectDense(AttendDenseArgs args, bool with_lse, float out_tolerance = kTolerance) {
    AttendResult expected(args.q, with_lse);
    expected.SetIn(args);
    ref::AttendDense(args);
    ForEachTarget([&] {
      AttendResult actual(args.q, with_lse);
      actual.SetIn(args);
      attention_.AttendDense(args);
      ExpectResult(args.kv, actual, expected, out_tolerance);
    });
  }

  void ExpectSparse(AttendSparseArgs args, float out_tolerance = kTolerance) {
    AttendResult expected(args.q, /*with_lse=*/true);
    expected.SetIn(args);
    ref::AttendSparse(args);
    ForEachTarget([&] {
      AttendResult actual(args.q, /*with_lse=*/true);
      actual.SetIn(args);
      attention_.AttendSparse(args);
      ExpectResult(args.kv, actual, expected, out_tolerance);
    });
  }

  void ExpectDecode(AttendDecodeArgs args) {
    Tensor expected = Like(args.q);
    args.out = expected.view();
    ref::AttendDecode(args);
    ForEachTarget([&] {
      Tensor actual = Like(args.q);
      args.out = actual.view();
      attention_.AttendDecode(args);
      if (cpu::DecodeTileTakes(args.kvs[0].head_dim)) {
        testing_attention::ExpectClose(actual, expected, kTolerance);
      } else {
        ExpectOut(args.kvs[0], actual, expected, kTolerance);
      }
    });
  }

  // Returns the reference's lse_full.
  Tensor ExpectSampleLse(SampleLseArgs args) {
    const auto lse = [&] { return Tensor({args.q.dim(1), args.n_rows}); };
    Tensor expected_full = lse(), expected_local = lse();
    args.lse_full = expected_full.view();
    args.lse_local = expected_local.view();
    ref::SampleLse(args);
    ForEachTarget([&] {
      Tensor full = lse(), local = lse();
      args.lse_full = full.view();
      args.lse_local = local.view();
      attention_.SampleLse(args);
      testing_attention::ExpectClose(full, expected_full, kTolerance);
      testing_attention::ExpectClose(local, expected_local, kTolerance);
    });
    return expected_full;
  }

  void ExpectSampleMass(SampleMassArgs args, bool with_bands, float tolerance = kTolerance) {
    const int64_t n_keys = args.q_begin + args.q.dim(0);
    const int64_t n_heads =
        (args.kv_head_end - args.kv_head_begin) * args.q.dim(1) / args.kv.n_kv_heads;
    Mass expected(n_heads, n_keys);
    expected.SetIn(args, with_bands);
    ref::SampleMass(args);
    ForEachTarget([&] {
      Mass actual(n_heads, n_keys);
      actual.SetIn(args, with_bands);
      attention_.SampleMass(args);
      testing_attention::ExpectClose(actual.sum, expected.sum, tolerance);
      testing_attention::ExpectClose(actual.max, expected.max, tolerance);
      testing_attention::ExpectClose(actual.band, expected.band, tolerance);
    });
  }

  ThreadPool pool_{2};
  CpuAttention attention_{&pool_};

 private:
  static Tensor Like(const TensorView& q) { return Tensor({q.dim(0), q.dim(1), q.dim(2)}); }

  struct AttendResult {
    AttendResult(const TensorView& q, bool with_lse)
        : out(Like(q)), lse({q.dim(0), with_lse ? q.dim(1) : 0}) {}
    template <typename Args>
    void SetIn(Args& args) const {
      args.out = out.view();
      args.lse = lse.data().empty() ? TensorView() : lse.view();
    }
    Tensor out;  // [T, H, D]
    Tensor lse;  // [T, H], or none
  };

  struct Mass {
    Mass(int64_t n_heads, int64_t n_keys)
        : sum({n_heads, n_keys}), max({n_heads, n_keys}), band({n_heads, Bands(n_keys)}) {}
    static int64_t Bands(int64_t n_keys) { return CeilDiv(n_keys, kBandWidth); }
    void SetIn(SampleMassArgs& args, bool with_bands) const {
      args.mass_sum = sum.view();
      args.mass_max = max.view();
      args.band_mass = with_bands ? band.view() : TensorView();
    }
    Tensor sum, max, band;
  };

  static void ExpectOut(const KvView& kv, const Tensor& actual, const Tensor& expected,
                        float tolerance) {
    if (cpu::TileWordFor(kv.dtype, kv.head_dim) == cpu::TileWord::kBF16Pair) {
      EXPECT_LE(RelativeRms(actual, expected), kPairRms);
    } else {
      testing_attention::ExpectClose(actual, expected, tolerance);
    }
  }

  static void ExpectResult(const KvView& kv, const AttendResult& actual,
                           const AttendResult& expected, float out_tolerance) {
    ExpectOut(kv, actual.out, expected.out, out_tolerance);
    testing_attention::ExpectClose(actual.lse, expected.lse, kTolerance);
  }
};

}  // namespace longhaul::testing_attention
