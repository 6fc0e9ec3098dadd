// Linear layers of every host backend against the reference.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/backend.h"
#include "tests/testing/compare.h"

namespace longhaul {
namespace {

using testing::IsClose;
using testing::Random;
using testing::View;

class GemmTest : public ::testing::TestWithParam<std::tuple<BackendKind, WeightFormat>> {
 protected:
  WeightFormat format() const { return std::get<1>(GetParam()); }
  std::unique_ptr<LinearWeight> Prepare(TensorView weight) {
    return backend_->PrepareLinear(weight, format()).value();
  }
  std::unique_ptr<LinearWeight> PrepareRef(TensorView weight) {
    return ref_->PrepareLinear(weight, format()).value();
  }

  std::unique_ptr<Backend> backend_ =
      CreateBackend(std::get<0>(GetParam()), /*n_threads=*/3).value();
  std::unique_ptr<Backend> ref_ = CreateRefBackend();
};

INSTANTIATE_TEST_SUITE_P(
    Backends, GemmTest,
    ::testing::Combine(::testing::Values(BackendKind::kCpu),
                       ::testing::Values(WeightFormat::kF32, WeightFormat::kBF16,
                                         WeightFormat::kInt8)),
    [](const auto& info) { return std::string(WeightFormatName(std::get<1>(info.param))); });

constexpr int64_t ElementBytes(WeightFormat format) {
  return format == WeightFormat::kF32 ? 4 : format == WeightFormat::kBF16 ? 2 : 1;
}

// A random matrix [n_out, n_in] in `dtype`.
class Matrix {
 public:
  Matrix(int64_t n_out, int64_t n_in, DType dtype, uint64_t seed)
      : n_out_(n_out), n_in_(n_in), dtype_(dtype) {
    Random random(seed);
    storage_.resize(n_out * n_in);
    for (int64_t i = 0; i < n_out * n_in; ++i) {
      const float x = random.Normal();
      if (dtype == DType::kF32) {
        reinterpret_cast<float*>(storage_.data())[i] = x;
      } else if (dtype == DType::kBF16) {
        reinterpret_cast<BF16*>(storage_.data())[i] = ToBF16(x);
      } else {  // exponent of 1/4 to 2, any mantissa
        reinterpret_cast<F16*>(storage_.data())[i] = {
            static_cast<uint16_t>((random.Next() & 0x8fffu) + 0x3400u)};
      }
    }
  }
  TensorView view() { return TensorView(storage_.data(), dtype_, {n_out_, n_in_}); }

 private:
  int64_t n_out_, n_in_;
  DType dtype_;
  std::vector<uint32_t> storage_;
};

struct Shape {
  int64_t m, n, k;
};

TEST_P(GemmTest, MatchesReference) {
  const Shape shapes[] = {{1, 1, 1},    {1, 3, 17},    {3, 17, 113},  {17, 113, 3},  {113, 64, 64},
                          {1, 300, 64}, {64, 257, 80}, {2, 1000, 33}, {400, 70, 96}, {0, 5, 5},
                          {4, 130, 66}, {5, 64, 255},  {7, 65, 129},  {8, 321, 130}};
  for (const auto& [m, n, k] : shapes) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (int variant = 0; variant < 4; ++variant) {
        const bool accumulate = variant & 1, with_bias = variant & 2;
        Matrix weight(n, k, dtype, m + n + k);
        Random random(variant);
        std::vector<float> x = random.Normals(m * k), bias = random.Normals(n);
        std::vector<float> actual = random.Normals(m * n), expected = actual;
        if (!accumulate) actual.assign(actual.size(), NAN);  // must not be read
        const auto prepared = Prepare(weight.view());
        const auto ref_prepared = PrepareRef(weight.view());
        EXPECT_EQ(prepared->n_out, n);
        EXPECT_EQ(prepared->n_in, k);
        EXPECT_GE(prepared->n_bytes, n * k * ElementBytes(format()));
        EXPECT_EQ(prepared->format, format());
        LinearArgs args{.x = View(x, {m, k}),
                        .weight = prepared.get(),
                        .bias = with_bias ? View(bias, {n}) : TensorView(),
                        .accumulate = accumulate,
                        .y = View(actual, {m, n})};
        backend_->Linear(args);
        args.weight = ref_prepared.get();
        args.y = View(expected, {m, n});
        ref_->Linear(args);
        EXPECT_TRUE(IsClose(actual, expected, DType::kF32, 2e-6 * k + 2e-6))
            << m << " x " << n << " x " << k << " " << DTypeName(dtype) << " variant " << variant;
      }
    }
  }
}

TEST_P(GemmTest, StridedRowsLeaveTheirNeighboursAlone) {
  constexpr int64_t kRows = 70, kIn = 48, kOut = 96;
  Matrix weight(kOut, kIn, DType::kBF16, 3);
  const auto prepared = Prepare(weight.view());
  const auto ref_prepared = PrepareRef(weight.view());
  Random random(4);
  std::vector<float> x = random.Normals(kRows * 3 * kIn), actual(kRows * 2 * kOut, 7.0f),
                     expected = actual;
  LinearArgs args{.x = View(x, {kRows, 3 * kIn}).Columns(kIn, 2 * kIn),
                  .weight = prepared.get(),
                  .y = View(actual, {kRows, 2 * kOut}).Columns(kOut, 2 * kOut)};
  backend_->Linear(args);
  args.weight = ref_prepared.get();
  args.y = View(expected, {kRows, 2 * kOut}).Columns(kOut, 2 * kOut);
  ref_->Linear(args);
  EXPECT_TRUE(IsClose(actual, expected, DType::kF32, 1e-4));
}

// The source of a weight is a file mapping that goes away.
TEST_P(GemmTest, PreparedWeightOutlivesItsSource) {
  auto weight = std::make_unique<Matrix>(80, 40, DType::kF32, 3);
  const auto prepared = Prepare(weight->view());
  const auto ref_prepared = PrepareRef(weight->view());
  std::fill_n(weight->view().As<float>(), 80 * 40, NAN);
  weight.reset();
  std::vector<float> x(40, 1.0f), actual(80), expected(80);
  backend_->Linear({.x = View(x, {1, 40}), .weight = prepared.get(), .y = View(actual, {1, 80})});
  ref_->Linear({.x = View(x, {1, 40}), .weight = ref_prepared.get(), .y = View(expected, {1, 80})});
  EXPECT_TRUE(IsClose(actual, expected, DType::kF32, 1e-4));
}

// What the prefix cache and batching build on: the rows around a row do not change its bits.
TEST_P(GemmTest, RowsDoNotDependOnTheBatch) {
  constexpr int64_t kRows = 300, kIn = 520, kOut = 330;
  Matrix weight(kOut, kIn, DType::kF32, 8);
  const auto prepared = Prepare(weight.view());
  Random random(2);
  std::vector<float> x = random.Normals(kRows * kIn), all(kRows * kOut);
  backend_->Linear(
      {.x = View(x, {kRows, kIn}), .weight = prepared.get(), .y = View(all, {kRows, kOut})});
  for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 100, 257}) {
    std::vector<float> some(m * kOut);
    backend_->Linear({.x = View(x, {kRows, kIn}).Slice(7, 7 + m),
                      .weight = prepared.get(),
                      .y = View(some, {m, kOut})});
    const std::vector<float> same(all.begin() + 7 * kOut, all.begin() + (7 + m) * kOut);
    EXPECT_EQ(some, same) << m << " rows";
  }
}

TEST_P(GemmTest, RepeatedCallsAgree) {
  constexpr int64_t kRows = 600, kIn = 256, kOut = 512;
  Matrix weight(kOut, kIn, DType::kF32, 8);
  const auto prepared = Prepare(weight.view());
  Random random(2);
  std::vector<float> x = random.Normals(kRows * kIn), first(kRows * kOut), again(kRows * kOut);
  LinearArgs args{
      .x = View(x, {kRows, kIn}), .weight = prepared.get(), .y = View(first, {kRows, kOut})};
  backend_->Linear(args);
  args.y = View(again, {kRows, kOut});
  for (int i = 0; i < 5; ++i) {
    backend_->Linear(args);
    ASSERT_EQ(first, again);
  }
}

TEST_P(GemmTest, MemoryIsThatOfTheFormat) {
  Matrix weight(512, 640, DType::kBF16, 1);
  const auto prepared = Prepare(weight.view());
  EXPECT_LE(prepared->n_bytes, 512 * 640 * ElementBytes(format()) + 512 * 8);
  EXPECT_EQ(static_cast<int64_t>(prepared->packed.size()), prepared->n_bytes);
}

// Bytes from a file give the same results as the weight that they were written from.
TEST_P(GemmTest, AdoptedBytesAreTheSameWeight) {
  constexpr int64_t kIn = 113, kOut = 330;
  Matrix weight(kOut, kIn, DType::kF32, 8);
  const auto prepared = Prepare(weight.view());
  std::vector<std::byte> storage(prepared->packed.size() + 64);
  std::byte* bytes = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64);
  std::memcpy(bytes, prepared->packed.data(), prepared->packed.size());
  const auto adopted =
      backend_->AdoptLinear(kOut, kIn, format(), {bytes, prepared->packed.size()}).value();
  Random random(2);
  std::vector<float> x = random.Normals(5 * kIn), expected(5 * kOut), actual(5 * kOut);
  LinearArgs args{.x = View(x, {5, kIn}), .weight = prepared.get(), .y = View(expected, {5, kOut})};
  backend_->Linear(args);
  args.weight = adopted.get();
  args.y = View(actual, {5, kOut});
  backend_->Linear(args);
  EXPECT_EQ(actual, expected);

  EXPECT_FALSE(
      backend_->AdoptLinear(kOut, kIn, format(), {bytes, prepared->packed.size() - 64}).ok());
  EXPECT_FALSE(
      backend_->AdoptLinear(kOut, kIn, format(), {bytes + 4, prepared->packed.size()}).ok());
  EXPECT_FALSE(backend_->PackedLayoutName().empty());
}

// A row that is not finite spoils itself, and no other one. Nothing and almost nothing are 0.
TEST_P(GemmTest, UnusualRows) {
  constexpr int64_t kIn = 37, kOut = 70;
  Matrix weight(kOut, kIn, DType::kF32, 8);
  const auto prepared = Prepare(weight.view());
  Random random(2);
  std::vector<float> x = random.Normals(6 * kIn), y(6 * kOut), row(kOut);
  x[1 * kIn + 36] = NAN;
  x[2 * kIn + 3] = -INFINITY;
  std::fill_n(x.begin() + 3 * kIn, kIn, 0.0f);
  std::fill_n(x.begin() + 4 * kIn, kIn, 1e-38f);
  backend_->Linear({.x = View(x, {6, kIn}), .weight = prepared.get(), .y = View(y, {6, kOut})});
  for (int64_t o = 0; o < kOut; ++o) {
    EXPECT_FALSE(std::isfinite(y[1 * kOut + o]));
    EXPECT_FALSE(std::isfinite(y[2 * kOut + o]));
    EXPECT_EQ(y[3 * kOut + o], 0);
    EXPECT_NEAR(y[4 * kOut + o], 0, 1e-35);
  }
  for (int64_t t : {0, 5}) {
    backend_->Linear({.x = View(x, {6, kIn}).Slice(t, t + 1),
                      .weight = prepared.get(),
                      .y = View(row, {1, kOut})});
    EXPECT_EQ(row, std::vector<float>(y.begin() + t * kOut, y.begin() + (t + 1) * kOut));
  }
}

// Norm or activation function and product in one op: the bits of one after the other, across blocks
// of converted rows, into rows that are strided.
TEST_P(GemmTest, FusedOpsAreTheTwoOps) {
  constexpr int64_t kRows = 1100, kIn = 72, kOut = 50;
  Matrix weight(kOut, kIn, DType::kF32, 5);
  const auto prepared = Prepare(weight.view());
  Random random(6);
  std::vector<float> x = random.Normals(kRows * 2 * kIn), gamma = random.Normals(kIn),
                     scratch(kRows * kIn), expected = random.Normals(kRows * kOut),
                     actual = expected;
  const auto linear = [&](std::vector<float>& y) {
    return LinearArgs{.x = View(scratch, {kRows, kIn}),
                      .weight = prepared.get(),
                      .accumulate = true,
                      .y = View(y, {kRows, kOut})};
  };
  const RmsNormArgs norm{.x = View(x, {kRows, 2 * kIn}).Columns(kIn, 2 * kIn),
                         .weight = View(gamma, {kIn}),
                         .out = View(scratch, {kRows, kIn})};
  backend_->RmsNorm(norm);
  backend_->Linear(linear(expected));
  backend_->NormLinear(norm, linear(actual));
  EXPECT_EQ(actual, expected);

  const SwiGluArgs gate{.gate_up = View(x, {kRows, 2 * kIn}), .out = View(scratch, {kRows, kIn})};
  backend_->SwiGlu(gate);
  backend_->Linear(linear(expected));
  backend_->SwiGluLinear(gate, linear(actual));
  EXPECT_EQ(actual, expected);
}

// More rows than are converted at a time, in each format.
TEST_P(GemmTest, ManyRows) {
  constexpr int64_t kRows = 2100, kIn = 40, kOut = 30;
  Matrix weight(kOut, kIn, DType::kF32, 5);
  const auto prepared = Prepare(weight.view());
  const auto ref_prepared = PrepareRef(weight.view());
  Random random(6);
  std::vector<float> x = random.Normals(kRows * kIn), actual(kRows * kOut), expected = actual;
  LinearArgs args{
      .x = View(x, {kRows, kIn}), .weight = prepared.get(), .y = View(actual, {kRows, kOut})};
  backend_->Linear(args);
  args.weight = ref_prepared.get();
  args.y = View(expected, {kRows, kOut});
  ref_->Linear(args);
  EXPECT_TRUE(IsClose(actual, expected, DType::kF32, 1e-4));
}

// Elements that tower over their row, as trained models have them, leave 8 bits for the others.
TEST_P(GemmTest, OutliersLeaveRoomForTheOthers) {
  constexpr int64_t kRows = 20, kIn = 1024 + 64 + 16, kOut = 130;
  Matrix weight(kOut, kIn, DType::kF32, 5);
  const auto prepared = Prepare(weight.view());
  const auto exact = ref_->PrepareLinear(weight.view(), WeightFormat::kF32).value();
  Random random(6);
  std::vector<float> x = random.Normals(kRows * kIn), actual(kRows * kOut), expected = actual;
  for (int64_t t = 0; t < kRows; ++t) {
    for (int64_t i : {3, 300, 777, 1030, 1100}) x[t * kIn + i] = 50.0f;
  }
  backend_->Linear(
      {.x = View(x, {kRows, kIn}), .weight = prepared.get(), .y = View(actual, {kRows, kOut})});
  ref_->Linear(
      {.x = View(x, {kRows, kIn}), .weight = exact.get(), .y = View(expected, {kRows, kOut})});
  double error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
  }
  // In steps of 50 / 127 the others alone would err by 3.8.
  EXPECT_LT(std::sqrt(error / static_cast<double>(expected.size())), 1.6);
}

// How far the formats are from the exact product: what their rounding allows, and no more.
TEST_P(GemmTest, ErrorOfTheFormat) {
  constexpr int64_t kRows = 20, kIn = 1024, kOut = 130;
  Matrix weight(kOut, kIn, DType::kF32, 5);
  const auto prepared = Prepare(weight.view());
  const auto exact = ref_->PrepareLinear(weight.view(), WeightFormat::kF32).value();
  Random random(6);
  std::vector<float> x = random.Normals(kRows * kIn), actual(kRows * kOut), expected = actual;
  LinearArgs args{
      .x = View(x, {kRows, kIn}), .weight = prepared.get(), .y = View(actual, {kRows, kOut})};
  backend_->Linear(args);
  args.weight = exact.get();
  args.y = View(expected, {kRows, kOut});
  ref_->Linear(args);
  double error = 0, sum = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    sum += expected[i] * expected[i];
  }
  // Of x and of w: bf16 rounds 8 bits (0.17 % rms), int8 the largest of 1024 normals to 127.
  const double bound = format() == WeightFormat::kF32    ? 1e-6
                       : format() == WeightFormat::kBF16 ? 3e-3
                                                         : 1.3e-2;
  EXPECT_LT(std::sqrt(error / sum), bound);
  EXPECT_GT(std::sqrt(error / sum), bound / 10);
}

}  // namespace
}  // namespace longhaul
