// The audit on the device against AuditHead.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/audit.h"
#include "kernels/select_keys.h"
#include "tests/simt/device_problem.h"
#include "tests/testing/compare.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using testing::DeviceTensor;
using testing::IsClose;
using testing::Random;
using testing::View;

constexpr int64_t kHeads = 6;
constexpr int64_t kTokens = 90;
constexpr int64_t kVoting = 7;

struct Audited {
  std::vector<float> recall;
  std::vector<uint8_t> repair;
  std::vector<float> alpha;
};

// Of n_audit rows; some heads keep nearly everything, some little, some are dense.
void ExpectEqual(int64_t n_audit, float floor, float target, float lost = 0) {
  const int64_t n_rows = kVoting + n_audit;
  Random random(static_cast<uint64_t>(n_audit) + 1);
  std::vector<int32_t> rows;
  for (int64_t r = 0; r < n_rows; ++r) rows.push_back(static_cast<int32_t>((37 * r) % kTokens));
  std::vector<float> full = random.Normals(kHeads * n_rows, 3);
  std::vector<float> sparse(kTokens * kHeads, 99.0f);
  std::vector<int32_t> kind;
  Audited expected{.recall = std::vector<float>(kHeads * n_audit, -1.0f),
                   .repair = std::vector<uint8_t>(kHeads, 9),
                   .alpha = std::vector<float>(kHeads, 0.9f)};
  for (int64_t h = 0; h < kHeads; ++h) {
    kind.push_back(static_cast<int32_t>(h % 3));
    for (int64_t r = 0; r < n_rows; ++r) {
      const float lost = 0.3f * static_cast<float>(h) * static_cast<float>(random.Uniform());
      sparse[rows[r] * kHeads + h] = full[h * n_rows + r] - lost + 1e-4f;
    }
  }
  AuditArgs args{.rows = rows.data(),
                 .n_voting = kVoting,
                 .n_rows = n_rows,
                 .lse_full = View(full, {kHeads, n_rows}),
                 .lse_sparse = View(sparse, {kTokens, kHeads}),
                 .floor = floor,
                 .target = target,
                 .lost = lost,
                 .kind = kind.data(),
                 .recall = View(expected.recall, {kHeads, n_audit}),
                 .repair = expected.repair.data(),
                 .alpha = expected.alpha.data()};
  for (int64_t h = 0; h < kHeads; ++h) AuditHead(args, h);

  const DeviceArray<int32_t> device_rows(rows), device_kind(kind);
  const DeviceArray<float> device_full(full), device_sparse(sparse);
  simt::ForEachSeed(2, [&] {
    const DeviceTensor<> recall({kHeads, n_audit});
    const DeviceArray<uint8_t> repair(kHeads);
    const DeviceArray<float> alpha(std::vector<float>(kHeads, 0.9f));
    args.rows = device_rows.data();
    args.lse_full = TensorView(device_full.data(), DType::kF32, {kHeads, n_rows});
    args.lse_sparse = TensorView(device_sparse.data(), DType::kF32, {kTokens, kHeads});
    args.kind = device_kind.data();
    args.recall = recall.view();
    args.repair = repair.data();
    args.alpha = alpha.data();
    ASSERT_EQ(Audit(args, nullptr), cudaSuccess);
    EXPECT_TRUE(IsClose(recall.Floats(), expected.recall, DType::kF32, 1e-6));
    EXPECT_EQ(repair.Download(), expected.repair);
    EXPECT_TRUE(IsClose(alpha.Download(), expected.alpha, DType::kF32, 1e-6));
  });
}

TEST(AuditDeviceTest, MeasuresRepairsAndSteers) {
  for (const int64_t n_audit : {1, 16, 50}) {
    SCOPED_TRACE(::testing::Message() << n_audit << " audit rows");
    ExpectEqual(n_audit, /*floor=*/0.8f, /*target=*/0.93f);
    ExpectEqual(n_audit, /*floor=*/0.8f, /*target=*/0.8f, /*lost=*/0.6f);
  }
}

TEST(AuditDeviceTest, WithoutATargetAlphaStays) { ExpectEqual(16, 0.5f, 0); }

TEST(AuditDeviceTest, WithoutAuditRowsNothingIsRepaired) { ExpectEqual(0, 0.9f, 0.9f); }

}  // namespace
}  // namespace longhaul::cuda
