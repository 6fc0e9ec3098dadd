// The ops of the CUDA backend on the emulated device against kernels/ref, and an op that fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/fp8.h"
#include "tests/simt/kernel_test.h"

namespace longhaul {
namespace {

using simt::ForEachSeed;

// A tensor in the memory of a backend, made of f32 values of the host.
class DeviceTensor {
 public:
  DeviceTensor(Backend& backend, DType dtype, std::vector<int64_t> shape,
               const std::vector<float>& values)
      : backend_(backend), dtype_(dtype), n_(static_cast<int64_t>(values.size())) {
    buffer_ = backend.Allocate(n_bytes()).value();
    if (dtype == DType::kBF16) {
      std::vector<BF16> rounded;
      for (float x : values) rounded.push_back(ToBF16(x));
      backend.Upload(rounded.data(), buffer_.data(), n_bytes());
    } else {
      backend.Upload(values.data(), buffer_.data(), n_bytes());
    }
    view = shape.size() == 2   ? TensorView(buffer_.data(), dtype, {shape[0], shape[1]})
           : shape.size() == 3 ? TensorView(buffer_.data(), dtype, {shape[0], shape[1], shape[2]})
                               : TensorView(buffer_.data(), dtype, {shape[0]});
  }

  std::vector<float> Values() const {
    std::vector<std::byte> bytes(n_bytes());
    backend_.Download(buffer_.data(), bytes.data(), n_bytes());
    backend_.Synchronize();
    std::vector<float> values(n_);
    for (int64_t i = 0; i < n_; ++i) {
      values[i] = dtype_ == DType::kBF16 ? ToF32(reinterpret_cast<const BF16*>(bytes.data())[i])
                                         : reinterpret_cast<const float*>(bytes.data())[i];
    }
    return values;
  }

  TensorView view;

 private:
  int64_t n_bytes() const { return n_ * static_cast<int64_t>(DTypeBytes(dtype_)); }

  Backend& backend_;
  DType dtype_;
  int64_t n_;
  Buffer buffer_;
};

template <class T>
Buffer UploadArray(Backend& backend, const std::vector<T>& values) {
  const auto n_bytes = static_cast<int64_t>(values.size() * sizeof(T));
  Buffer buffer = backend.Allocate(n_bytes).value();
  backend.Upload(values.data(), buffer.data(), n_bytes);
  return buffer;
}

// Values that bf16 holds exactly, so that both backends start from the same.
std::vector<float> RandomValues(int64_t n, int seed, float scale = 1.0f) {
  std::mt19937 rng(static_cast<unsigned>(seed));
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(n);
  for (float& x : values) x = ToF32(ToBF16(normal(rng)));
  return values;
}

void ExpectNear(const std::vector<float>& got, const std::vector<float>& expected,
                float relative_error) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], relative_error * std::max(1.0f, std::abs(expected[i])))
        << "element " << i;
  }
}

constexpr float kBf16Error = 1.0f / 128;  // one rounding of a result, one of what it is made of
constexpr float kF32Error = 2e-5f;

// Runs an op on both backends; `op` gives its result as f32.
template <class Op>
void CompareWithRef(const Op& op, float relative_error) {
  const std::unique_ptr<Backend> ref = CreateRefBackend();
  const std::vector<float> expected = op(*ref);
  ForEachSeed(2, [&] {
    const std::unique_ptr<Backend> cuda = CreateCudaBackend().value();
    ExpectNear(op(*cuda), expected, relative_error);
  });
}

TEST(CudaOpsTest, Embed) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    CompareWithRef(
        [&](Backend& backend) {
          const DeviceTensor table(backend, dtype, {11, 37}, RandomValues(11 * 37, 1));
          const Buffer tokens = UploadArray<int32_t>(backend, {10, 0, 3});
          const DeviceTensor out(backend, DType::kF32, {3, 37}, std::vector<float>(3 * 37));
          backend.Embed({.token_ids = static_cast<const int32_t*>(tokens.data()),
                         .table = table.view,
                         .out = out.view});
          return out.Values();
        },
        0);
  }
}

TEST(CudaOpsTest, RmsNormOfRows) {
  for (int64_t width : {64, 130, 77}) {
    CompareWithRef(
        [&](Backend& backend) {
          const DeviceTensor x(backend, DType::kF32, {3, width}, RandomValues(3 * width, 2));
          const DeviceTensor weight(backend, DType::kF32, {width}, RandomValues(width, 3));
          const DeviceTensor out(backend, backend.activation_dtype(), {3, width},
                                 std::vector<float>(3 * width));
          backend.RmsNorm({.x = x.view, .weight = weight.view, .eps = 1e-5f, .out = out.view});
          return out.Values();
        },
        kBf16Error);
  }
}

TEST(CudaOpsTest, RmsNormOfHeadsInPlace) {
  CompareWithRef(
      [&](Backend& backend) {
        const DeviceTensor x(backend, backend.activation_dtype(), {3, 5 * 48},
                             RandomValues(3 * 5 * 48, 4));
        const DeviceTensor weight(backend, DType::kF32, {48}, RandomValues(48, 5));
        const TensorView heads = x.view.Columns(48, 4 * 48).SplitColumns(3, 48);
        backend.RmsNorm({.x = heads, .weight = weight.view, .eps = 1e-6f, .out = heads});
        return x.Values();
      },
      kBf16Error);
}

TEST(CudaOpsTest, SwiGlu) {
  for (int64_t width : {40, 13}) {
    CompareWithRef(
        [&](Backend& backend) {
          const DType act = backend.activation_dtype();
          const DeviceTensor x(backend, act, {3, 2 * width}, RandomValues(6 * width, 6, 4.0f));
          const DeviceTensor out(backend, act, {3, width}, std::vector<float>(3 * width));
          backend.SwiGlu({.gate_up = x.view, .out = out.view});
          return out.Values();
        },
        kBf16Error);
  }
}

TEST(CudaOpsTest, LinearWithBiasAndAccumulation) {
  for (const bool accumulate : {false, true}) {
    for (const bool f32_out : {false, true}) {
      if (accumulate && !f32_out) continue;
      CompareWithRef(
          [&](Backend& backend) {
            const DType act = backend.activation_dtype();
            const std::vector<float> w = RandomValues(24 * 40, 7, 0.2f);
            const TensorView matrix(const_cast<float*>(w.data()), DType::kF32, {24, 40});
            const auto weight = backend.PrepareLinear(matrix, WeightFormat::kBF16).value();
            const DeviceTensor x(backend, act, {5, 40}, RandomValues(5 * 40, 8));
            const DeviceTensor bias(backend, DType::kF32, {24}, RandomValues(24, 9));
            const DeviceTensor y(backend, f32_out ? DType::kF32 : act, {5, 24},
                                 RandomValues(5 * 24, 10));
            backend.Linear({.x = x.view,
                            .weight = weight.get(),
                            .bias = bias.view,
                            .accumulate = accumulate,
                            .y = y.view});
            return y.Values();
          },
          f32_out ? kF32Error : kBf16Error);
    }
  }
}

TEST(CudaOpsTest, MixtureOfExperts) {
  for (const bool renormalize : {false, true}) {
    CompareWithRef(
        [&](Backend& backend) {
          const DeviceTensor logits(backend, DType::kF32, {9, 40}, RandomValues(9 * 40, 11));
          const DeviceTensor shares(backend, DType::kF32, {9, 3}, std::vector<float>(27));
          const Buffer experts = backend.Allocate(27 * sizeof(int32_t)).value();
          backend.RouteExperts({.logits = logits.view,
                                .renormalize = renormalize,
                                .experts = TensorView(experts.data(), DType::kI32, {9, 3}),
                                .weights = shares.view});
          std::vector<int32_t> chosen(27);
          backend.Download(experts.data(), chosen.data(), 27 * sizeof(int32_t));
          std::vector<float> result = shares.Values();
          result.insert(result.end(), chosen.begin(), chosen.end());
          return result;
        },
        1e-5f);
  }
  for (int64_t width : {32, 21}) {
    CompareWithRef(
        [&](Backend& backend) {
          const DType act = backend.activation_dtype();
          const DeviceTensor x(backend, act, {4, width}, RandomValues(4 * width, 12));
          const DeviceTensor gathered(backend, act, {2, width}, std::vector<float>(2 * width));
          const DeviceTensor added(backend, DType::kF32, {2, width}, RandomValues(2 * width, 13));
          const DeviceTensor out(backend, DType::kF32, {4, width}, RandomValues(4 * width, 14));
          const Buffer rows = UploadArray<int32_t>(backend, {3, 1});
          const Buffer weights = UploadArray<float>(backend, {0.25f, -2.0f});
          const auto* row_list = static_cast<const int32_t*>(rows.data());
          backend.GatherRows({.x = x.view, .rows = row_list, .out = gathered.view});
          backend.ScatterAddRows({.x = added.view,
                                  .rows = row_list,
                                  .weights = static_cast<const float*>(weights.data()),
                                  .out = out.view});
          std::vector<float> result = gathered.Values();
          const std::vector<float> sums = out.Values();
          result.insert(result.end(), sums.begin(), sums.end());
          return result;
        },
        kF32Error);
  }
}

// Two sequences with a row each, or one with two rows; partial rotation; the pool is compared too.
TEST(CudaOpsTest, RopeTableAndKvWrite) {
  for (const int64_t rows_per_kv : {1, 2}) {
    for (const int64_t n_pairs : {32, 12}) {
      CompareWithRef(
          [&](Backend& backend) {
            const DType act = backend.activation_dtype();
            const KvLayout layout{
                .n_layers = 2, .n_kv_heads = 2, .head_dim = 64, .dtype = DType::kBF16};
            const int64_t n_pool = 3 * layout.PageBytes() / 2;
            const DeviceTensor pool(backend, DType::kBF16, {n_pool}, std::vector<float>(n_pool));
            const DeviceTensor qkv(backend, act, {2, 8 * 64}, RandomValues(2 * 8 * 64, 15));
            const Buffer pages = UploadArray<int32_t>(backend, {2, 0, 1});
            const auto* first_page = static_cast<const int32_t*>(pages.data());
            std::vector<KvView> kvs = {layout.View(pool.view.data(), first_page, 66, 1)};
            if (rows_per_kv == 1) {
              kvs.push_back(layout.View(pool.view.data(), first_page + 2, 6, 1));
            }
            std::vector<int64_t> positions = {64, 65};
            if (rows_per_kv == 1) positions = {65, 5};
            const Buffer device_positions = UploadArray(backend, positions);
            const Buffer kvs_copy = UploadArray(backend, kvs);
            std::vector<double> inv_freq;
            for (int64_t i = 0; i < n_pairs; ++i) inv_freq.push_back(std::pow(0.7, i));
            const DeviceTensor cos_sin(backend, DType::kF32, {2, n_pairs, 2},
                                       std::vector<float>(4 * n_pairs));
            const auto* device_position = static_cast<const int64_t*>(device_positions.data());
            backend.RopeTable({.positions = device_position,
                               .inv_freq = inv_freq.data(),
                               .scale = 1.25,
                               .cos_sin = cos_sin.view});
            backend.RopeKvWrite({.q = qkv.view.Columns(0, 4 * 64).SplitColumns(4, 64),
                                 .k = qkv.view.Columns(4 * 64, 6 * 64).SplitColumns(2, 64),
                                 .v = qkv.view.Columns(6 * 64, 8 * 64).SplitColumns(2, 64),
                                 .cos_sin = cos_sin.view,
                                 .positions = device_position,
                                 .kvs = kvs.data(),
                                 .kvs_copy = static_cast<const KvView*>(kvs_copy.data()),
                                 .rows_per_kv = rows_per_kv});
            std::vector<float> result = qkv.Values();
            const std::vector<float> written = pool.Values();
            result.insert(result.end(), written.begin(), written.end());
            return result;
          },
          kBf16Error);
    }
  }
}

// All three forms of the queries, in strided and in adjacent rows.
TEST(CudaOpsTest, RopeOfDualChunks) {
  constexpr int64_t kPairs = 20;  // of 32: the rest of a head is scaled and not rotated
  CompareWithRef(
      [&](Backend& backend) {
        const DType act = backend.activation_dtype();
        const KvLayout layout{
            .n_layers = 1, .n_kv_heads = 1, .head_dim = 64, .dtype = DType::kBF16};
        const int64_t n_pool = layout.PageBytes() / 2;
        const DeviceTensor pool(backend, DType::kBF16, {n_pool}, std::vector<float>(n_pool));
        const DeviceTensor qkv(backend, act, {3, 5 * 64}, RandomValues(3 * 5 * 64, 15));
        const DeviceTensor next(backend, act, {3, 3, 64}, std::vector<float>(3 * 3 * 64));
        const DeviceTensor far(backend, act, {3, 3, 64}, std::vector<float>(3 * 3 * 64));
        const auto angles = [&](int seed) {
          return DeviceTensor(backend, DType::kF32, {3, kPairs, 2}, RandomValues(6 * kPairs, seed));
        };
        const DeviceTensor own_angles = angles(16), next_angles = angles(17),
                           far_angles = angles(18);
        const Buffer q_scale = UploadArray<float>(backend, {1.0f, 1.25f, 3.0f});
        const Buffer positions = UploadArray<int64_t>(backend, {7, 8, 9});
        const Buffer pages = UploadArray<int32_t>(backend, {0});
        const KvView kv =
            layout.View(pool.view.data(), static_cast<const int32_t*>(pages.data()), 10, 0);
        const Buffer kvs_copy = UploadArray<KvView>(backend, {kv});
        backend.RopeKvWrite({.q = qkv.view.Columns(0, 3 * 64).SplitColumns(3, 64),
                             .k = qkv.view.Columns(3 * 64, 4 * 64).SplitColumns(1, 64),
                             .v = qkv.view.Columns(4 * 64, 5 * 64).SplitColumns(1, 64),
                             .cos_sin = own_angles.view,
                             .positions = static_cast<const int64_t*>(positions.data()),
                             .kvs = &kv,
                             .kvs_copy = static_cast<const KvView*>(kvs_copy.data()),
                             .rows_per_kv = 3,
                             .dual = {.next_cos_sin = next_angles.view,
                                      .far_cos_sin = far_angles.view,
                                      .q_scale = static_cast<const float*>(q_scale.data()),
                                      .next = next.view,
                                      .far = far.view}});
        std::vector<float> result = qkv.Values();
        for (const DeviceTensor* tensor : {&next, &far, &pool}) {
          const std::vector<float> values = tensor->Values();
          result.insert(result.end(), values.begin(), values.end());
        }
        return result;
      },
      2 * kBf16Error);
}

// Every row of the pages is the rounded row that the op left in its tensor, with its scale.
TEST(CudaOpsTest, KvWriteInFp8) {
  const std::unique_ptr<Backend> backend = CreateCudaBackend().value();
  for (const int32_t head_dim : {64, 80, 128}) {
    const KvLayout layout{
        .n_layers = 2, .n_kv_heads = 2, .head_dim = head_dim, .dtype = DType::kF8E4M3};
    const int64_t n_columns = 6 * head_dim;
    const DeviceTensor qkv(*backend, DType::kBF16, {3, n_columns}, RandomValues(3 * n_columns, 15));
    std::vector<uint8_t> pool(2 * layout.PageBytes());
    const Buffer device_pool = UploadArray(*backend, pool);
    const std::vector<int32_t> pages = {1, 0};
    const Buffer device_pages = UploadArray(*backend, pages);
    const KvView kv =
        layout.View(device_pool.data(), static_cast<const int32_t*>(device_pages.data()), 66, 1);
    const Buffer kvs_copy = UploadArray<KvView>(*backend, {kv});
    const Buffer positions = UploadArray<int64_t>(*backend, {63, 64, 65});
    const int64_t n_pairs = head_dim / 2;
    const DeviceTensor cos_sin(*backend, DType::kF32, {3, n_pairs, 2},
                               RandomValues(3 * head_dim, 17));
    const auto heads = [&](int64_t begin) {
      return qkv.view.Columns(begin * head_dim, (begin + 2) * head_dim).SplitColumns(2, head_dim);
    };
    backend->RopeKvWrite({.q = heads(0),
                          .k = heads(2),
                          .v = heads(4),
                          .cos_sin = cos_sin.view,
                          .positions = static_cast<const int64_t*>(positions.data()),
                          .kvs = &kv,
                          .kvs_copy = static_cast<const KvView*>(kvs_copy.data()),
                          .rows_per_kv = 3});
    const std::vector<float> rows = qkv.Values();
    const KvView expected = layout.View(pool.data(), pages.data(), 66, 1);
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < 4; ++i) {  // two heads of keys, two of values
        const int64_t page = t == 0 ? 0 : 1;
        const int64_t slot = (63 + t) % kPageTokens;
        std::byte* block = i < 2 ? expected.Keys(page, i) : expected.Values(page, i - 2);
        expected.RowScales(block)[slot] =
            RoundRowF8(rows.data() + t * n_columns + (2 + i) * head_dim, head_dim,
                       reinterpret_cast<F8E4M3*>(block) + slot * head_dim);
      }
    }
    std::vector<uint8_t> written(pool.size());
    backend->Download(device_pool.data(), written.data(), static_cast<int64_t>(written.size()));
    backend->Synchronize();
    EXPECT_EQ(written, pool) << head_dim;
  }
}

TEST(CudaOpsTest, CopyPages) {
  CompareWithRef(
      [](Backend& backend) {
        const DeviceTensor pool(backend, DType::kF32, {12}, RandomValues(12, 16));
        const std::vector<int32_t> src = {0, 2};
        const std::vector<int32_t> dst = {1, 2};
        backend.CopyPages({.pool = static_cast<std::byte*>(pool.view.data()),
                           .page_bytes = 16,
                           .src = src.data(),
                           .dst = dst.data(),
                           .n = 2});
        return pool.Values();
      },
      0);
}

TEST(CudaFaultDeathTest, NamesTheOp) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const std::unique_ptr<Backend> backend = CreateCudaBackend().value();
        const DeviceTensor x(*backend, DType::kBF16, {2, 16}, std::vector<float>(32));
        const DeviceTensor out(*backend, DType::kBF16, {2, 8}, std::vector<float>(16));
        simt::FailLaunch(0, cudaErrorLaunchFailure);
        backend->SwiGlu({.gate_up = x.view, .out = out.view});
      },
      "CUDA error in SwiGlu");
}

}  // namespace
}  // namespace longhaul
