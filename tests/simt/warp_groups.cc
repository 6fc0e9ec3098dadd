// The products of warp groups (wgmma) and the exchange of registers (setmaxnreg) of a simulated
// block. Each of the four warps computes its 16 rows by itself, as nothing in the ISA makes them
// wait for each other; what they ask for must agree.
#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <utility>

#include "tests/simt/block.h"

namespace longhaul::simt {
namespace {

constexpr int kSteps = 16;  // k of one product of bf16
constexpr int64_t kPatternBytes = 1024;
constexpr int64_t kRowBytes = 128;

float FromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// A matrix descriptor, field by field: PTX ISA, "Matrix Descriptor Format" of wgmma.
struct Matrix {
  int64_t start = 0;
  int64_t leading_bytes = 0;
  int64_t stride_bytes = 0;

  // Offset of the 16 bytes that hold 8 values of the summed dimension from k on (K-major: of row or
  // column i), or 8 columns from i on (N-major: at k). The swizzle moves 16-byte columns by the
  // number of the row, both read off the address.
  int64_t KMajor(int i, int k) const {
    return Swizzle(start + i / 8 * stride_bytes + i % 8 * kRowBytes + k * 2);
  }
  int64_t NMajor(int i, int k) const {
    return Swizzle(start + i / 64 * leading_bytes + i % 64 * 2 + k / 8 * stride_bytes +
                   k % 8 * kRowBytes);
  }
  static int64_t Swizzle(int64_t at) { return at ^ (at / kRowBytes % 8 * 16); }
};

Matrix Decode(uint64_t descriptor, bool is_n_major) {
  constexpr uint64_t kFieldMask = 0x3fff;
  constexpr uint64_t kKnownBits =
      kFieldMask | kFieldMask << 16 | kFieldMask << 32 | uint64_t{7} << 49 | uint64_t{3} << 62;
  const Matrix matrix = {.start = static_cast<int64_t>(descriptor & kFieldMask) * 16,
                         .leading_bytes = static_cast<int64_t>(descriptor >> 16 & kFieldMask) * 16,
                         .stride_bytes = static_cast<int64_t>(descriptor >> 32 & kFieldMask) * 16};
  const uint64_t base_offset = descriptor >> 49 & 7;
  const uint64_t swizzle = descriptor >> 62;
  const auto fail = [descriptor](const char* what) {
    throw Fault{fmt::format("wgmma, matrix descriptor {:#018x}: {}", descriptor, what)};
  };
  if ((descriptor & ~kKnownBits) != 0) fail("reserved bits are set");
  if (swizzle != 1) fail("only the 128-byte swizzle is emulated");
  if (base_offset != 0 || matrix.start % kPatternBytes >= kRowBytes) {
    fail("the matrix does not start in the first row of a 1024-byte pattern");
  }
  if (matrix.stride_bytes % kPatternBytes != 0 || matrix.stride_bytes == 0) {
    fail("the stride is no multiple of the 1024-byte pattern");
  }
  if (is_n_major && matrix.start % kPatternBytes != 0)
    fail("an N-major matrix starts inside a row");
  if (is_n_major && matrix.leading_bytes % kPatternBytes != 0) {
    fail("the leading offset is no multiple of the 1024-byte pattern");
  }
  if (!is_n_major && matrix.start % kRowBytes % (2 * kSteps) != 0) {
    fail("16 columns do not lie in one row of 128 bytes");
  }
  return matrix;
}

}  // namespace

void FailRegisters(const char* what) {
  throw Fault{fmt::format("registers of a wgmma under way {} (not waited for)", what)};
}

// ---- Registers ----

void Block::WorkRegisters(int warp, int n_and_increases) {
  const int n = n_and_increases / 2;
  const bool increases = n_and_increases % 2 != 0;
  int& now = warps_[static_cast<size_t>(warp)].n_registers;
  if (n < 24 || n > 256 || n % 8 != 0) {
    throw Fault{fmt::format("{} registers: must be a multiple of 8 from 24 to 256", n)};
  }
  if (increases ? n < now : n > now) {
    throw Fault{
        fmt::format("{} to {} registers, of {}", increases ? "increases" : "decreases", n, now)};
  }
  now = n;
}

// ---- Products ----

// What the lanes of a warp, and then the warps of a group, must agree on.
void Block::CheckProduct(int warp) const {
  const LaneArgs(&lanes)[32] = warps_[static_cast<size_t>(warp)].lanes;
  const ProductArgs& first = *lanes[0].product;
  for (const LaneArgs& lane : lanes) {
    const ProductArgs& args = *lane.product;
    if (args.a_descriptor != first.a_descriptor || args.b_descriptor != first.b_descriptor ||
        args.accumulates != first.accumulates || args.n_columns != first.n_columns) {
      throw Fault{"wgmma: the lanes of a warp differ in what they multiply"};
    }
    if (!args.d_use->is_fenced() || (args.a_in_registers && !args.a_use->is_fenced())) {
      throw Fault{"wgmma: its registers were accessed with no WgmmaFence since"};
    }
  }
}

void Block::CheckGroupProduct(int warp) {
  const Warp& self = warps_[static_cast<size_t>(warp)];
  if (shape_.n_threads % 128 != 0) throw Fault{"wgmma: the block is not made of warp groups"};
  std::vector<GroupProduct>& products = group_products_[static_cast<size_t>(warp / 4)];
  const ProductArgs& args = *self.lanes[0].product;
  if (self.n_products == products.size()) {
    products.push_back({.site = self.site,
                        .n_columns = args.n_columns,
                        .a_descriptor = args.a_descriptor,
                        .b_descriptor = args.b_descriptor});
    return;
  }
  const GroupProduct& other = products[self.n_products];
  if (!SameSite(self.site, other.site) || args.n_columns != other.n_columns ||
      args.a_descriptor != other.a_descriptor || args.b_descriptor != other.b_descriptor) {
    throw Fault{fmt::format("wgmma: the warps of a group differ in what they multiply: {} and {}",
                            ToString(self.site), ToString(other.site))};
  }
}

void Block::WorkProduct(int warp, int) {
  CheckProduct(warp);
  CheckGroupProduct(warp);
  Warp& self = warps_[static_cast<size_t>(warp)];
  Product product;
  for (int lane = 0; lane < 32; ++lane) {
    ProductArgs& args = product.lanes[lane];
    args = *self.lanes[lane].product;
    args.d_use->BeginProduct();
    if (args.a_in_registers) args.a_use->BeginProduct();
  }
  ReadProductMatrices(warp, product);
  if (warp % 4 == 0) ++statistics_->n_wgmma;
  ++self.n_products;
  self.open_products.push_back(std::move(product));
}

void Block::ReadProductMatrices(int warp, Product& product) {
  const ProductArgs& args = product.lanes[0];
  const auto read = [&](int64_t offset, uint16_t(&values)[8]) {
    std::memcpy(values, shared_.BeginProductRead(offset, warp), sizeof(values));
    product.reads.push_back(offset);
  };
  uint16_t values[8];
  float a[16][kSteps];
  if (args.a_in_registers) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {  // as in WorkMma
        float* at = &a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8];
        at[0] = FromBf16(static_cast<uint16_t>(product.lanes[lane].a[i]));
        at[1] = FromBf16(static_cast<uint16_t>(product.lanes[lane].a[i] >> 16));
      }
    }
  } else {
    const Matrix matrix = Decode(args.a_descriptor, /*is_n_major=*/false);
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < kSteps; k += 8) {
        read(matrix.KMajor(warp % 4 * 16 + row, k), values);
        for (int i = 0; i < 8; ++i) a[row][k + i] = FromBf16(values[i]);
      }
    }
  }
  const int n = args.n_columns;
  std::vector<float> b(static_cast<size_t>(kSteps * n));  // [kSteps, n]
  const Matrix matrix = Decode(args.b_descriptor, args.b_is_n_major);
  for (int piece = 0; piece < kSteps * n / 8; ++piece) {
    const int column = args.b_is_n_major ? piece % (n / 8) * 8 : piece / 2;
    const int k = args.b_is_n_major ? piece / (n / 8) : piece % 2 * 8;
    read(args.b_is_n_major ? matrix.NMajor(column, k) : matrix.KMajor(column, k), values);
    for (int i = 0; i < 8; ++i) {
      const int at = args.b_is_n_major ? k * n + column + i : (k + i) * n + column;
      b[static_cast<size_t>(at)] = FromBf16(values[i]);
    }
  }
  product.result.assign(static_cast<size_t>(16 * n), 0.0f);
  for (int row = 0; row < 16; ++row) {
    float* result = product.result.data() + row * n;
    for (int k = 0; k < kSteps; ++k) {
      const float* b_row = b.data() + k * n;
      for (int column = 0; column < n; ++column) result[column] += a[row][k] * b_row[column];
    }
  }
}

void Block::WorkCommit(int warp, int) {
  Warp& self = warps_[static_cast<size_t>(warp)];
  self.product_groups.push_back(std::exchange(self.open_products, {}));
}

void Block::WorkWait(int warp, int n_pending) {
  Warp& self = warps_[static_cast<size_t>(warp)];
  while (self.product_groups.size() > static_cast<size_t>(n_pending)) {
    for (const Product& product : self.product_groups.front()) FinishProduct(warp, product);
    self.product_groups.pop_front();
  }
}

void Block::FinishProduct(int warp, const Product& product) {
  for (const int64_t offset : product.reads) shared_.EndProductRead(offset, warp);
  const int n = product.lanes[0].n_columns;
  for (int lane = 0; lane < 32; ++lane) {
    const ProductArgs& args = product.lanes[lane];
    for (int i = 0; i < n / 2; ++i) {  // per 8 columns: (g, 2t), (g, 2t + 1), (g + 8, 2t), ...
      const int row = lane / 4 + i % 4 / 2 * 8;
      const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      const float value = product.result[static_cast<size_t>(row * n + column)];
      args.d[i] = args.accumulates ? args.d[i] + value : value;
    }
    args.d_use->EndProduct();
    if (args.a_in_registers) args.a_use->EndProduct();
  }
}

// ---- Functions of simt/hopper_core.h ----

void SetRegisters(bool increases, int n_registers, const Site& site) {
  RunningBlock().Meet(Block::WarpOp::kRegisters, increases ? "TakeRegisters" : "GiveUpRegisters",
                      &Block::WorkRegisters, n_registers * 2 + (increases ? 1 : 0), {}, site);
}
void WgmmaFence(const Site& site) {
  RunningBlock().Meet(Block::WarpOp::kWgmmaFence, "WgmmaFence", &Block::WorkNothing, 0, {}, site);
}
void WgmmaProduct(const ProductArgs& product, const Site& site) {
  Block::LaneArgs args;
  args.product = &product;
  RunningBlock().Meet(Block::WarpOp::kWgmma, "wgmma", &Block::WorkProduct, 0, args, site);
}
void WgmmaCommit(const Site& site) {
  RunningBlock().Meet(Block::WarpOp::kWgmmaCommit, "WgmmaCommit", &Block::WorkCommit, 0, {}, site);
}
void WgmmaWait(int n_pending, const Site& site) {
  RunningBlock().Meet(Block::WarpOp::kWgmmaWait, "WgmmaWait", &Block::WorkWait, n_pending, {},
                      site);
}

}  // namespace longhaul::simt
