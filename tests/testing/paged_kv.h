// Owners of the memory behind KvView and SparsePlan for tests.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <vector>

#include "kernels/args.h"
#include "kernels/base/checked_math.h"
#include "kernels/base/fp8.h"
#include "kernels/kv_layout.h"
#include "tests/testing/compare.h"

namespace longhaul::testing {

// One sequence's pages, scattered over a pool that is larger and full of NaN elsewhere (in fp8 of
// its largest number), so that a read of a wrong page or past the last token shows.
class PagedKv {
 public:
  PagedKv(int32_t n_kv_heads, int32_t head_dim, int64_t n_tokens, DType dtype, uint64_t seed = 1)
      : layout_{.n_layers = 2, .n_kv_heads = n_kv_heads, .head_dim = head_dim, .dtype = dtype},
        n_tokens_(n_tokens) {
    const int64_t n_pages = CeilDiv(n_tokens, kPageTokens);
    const int64_t n_pool_pages = 2 * n_pages + 1;
    pool_.assign(n_pool_pages * layout_.PageBytes() / sizeof(uint32_t),
                 dtype == DType::kF8E4M3 ? 0xfefefefeu : 0x7fc07fc0u);
    pages_.resize(n_pool_pages);
    std::iota(pages_.begin(), pages_.end(), 0);
    Random random(seed);
    for (int64_t i = n_pool_pages - 1; i > 0; --i)
      std::swap(pages_[i], pages_[random.Below(i + 1)]);
    pages_.resize(n_pages);
  }

  // Standard normal keys and values in layer `layer`, rounded to the dtype.
  void Fill(uint64_t seed, int32_t layer = 1) {
    Random random(seed);
    for (int64_t token = 0; token < n_tokens_; ++token) {
      for (int64_t head = 0; head < layout_.n_kv_heads; ++head) {
        Set(layer, token, head, random.Normals(layout_.head_dim), random.Normals(layout_.head_dim));
      }
    }
  }

  void Set(int32_t layer, int64_t token, int64_t head, const std::vector<float>& key,
           const std::vector<float>& value) {
    const KvView view = View(layer);
    Store(view, view.Keys(token / kPageTokens, head), token % kPageTokens, key);
    Store(view, view.Values(token / kPageTokens, head), token % kPageTokens, value);
  }

  // [D] of one token, widened.
  std::vector<float> Key(int32_t layer, int64_t token, int64_t head) const {
    const KvView view = View(layer);
    return Load(view, view.Keys(token / kPageTokens, head), token % kPageTokens);
  }
  std::vector<float> Value(int32_t layer, int64_t token, int64_t head) const {
    const KvView view = View(layer);
    return Load(view, view.Values(token / kPageTokens, head), token % kPageTokens);
  }

  // Whether an element is as it was before anything was stored.
  static bool IsUnwritten(float x) { return std::isnan(x) || x == -57344.0f; }

  KvView View(int32_t layer = 1) const {
    return layout_.View(const_cast<uint32_t*>(pool_.data()), pages_.data(), n_tokens_, layer);
  }
  const std::vector<uint32_t>& pool() const { return pool_; }

 private:
  static void Store(const KvView& kv, std::byte* block, int64_t slot,
                    const std::vector<float>& row) {
    std::byte* to = block + slot * kv.RowBytes();
    if (kv.dtype == DType::kF8E4M3) {
      kv.RowScales(block)[slot] =
          RoundRowF8(row.data(), kv.head_dim, reinterpret_cast<F8E4M3*>(to));
      return;
    }
    for (int64_t i = 0; i < kv.head_dim; ++i) {
      if (kv.dtype == DType::kF32) {
        reinterpret_cast<float*>(to)[i] = row[i];
      } else {
        reinterpret_cast<BF16*>(to)[i] = ToBF16(row[i]);
      }
    }
  }
  static std::vector<float> Load(const KvView& kv, std::byte* block, int64_t slot) {
    const std::byte* from = block + slot * kv.RowBytes();
    std::vector<float> row(kv.head_dim);
    for (int64_t i = 0; i < kv.head_dim; ++i) {
      switch (kv.dtype) {
        case DType::kF32:
          row[i] = reinterpret_cast<const float*>(from)[i];
          break;
        case DType::kBF16:
          row[i] = ToF32(reinterpret_cast<const BF16*>(from)[i]);
          break;
        default:
          row[i] = ToF32(reinterpret_cast<const F8E4M3*>(from)[i]) *
                   RowFactorF8(kv.RowScales(block)[slot]);
      }
    }
    return row;
  }

  KvLayout layout_;
  int64_t n_tokens_;
  std::vector<uint32_t> pool_;
  std::vector<int32_t> pages_;
};

// A plan with its arrays. Entries start as garbage; every head's must be written.
class PlanOwner {
 public:
  PlanOwner(int64_t n_heads, LocalPattern local, int64_t stripe_width, int64_t max_stripes,
            int64_t max_bands)
      : kind_(n_heads, -1),
        n_stripes_(n_heads, -1),
        stripes_(n_heads * max_stripes, -1),
        n_bands_(n_heads, -1),
        bands_(n_heads * max_bands, -1),
        kept_pairs_(n_heads, -1) {
    plan_ = {.local = local,
             .stripe_width = stripe_width,
             .max_stripes = max_stripes,
             .max_bands = max_bands,
             .kind = kind_.data(),
             .n_stripes = n_stripes_.data(),
             .stripes = stripes_.data(),
             .n_bands = n_bands_.data(),
             .bands = bands_.data(),
             .kept_pairs = kept_pairs_.data()};
  }
  PlanOwner(const PlanOwner&) = delete;
  PlanOwner& operator=(const PlanOwner&) = delete;

  void Set(int64_t head, HeadKind kind, const std::vector<int32_t>& stripes = {},
           const std::vector<int32_t>& bands = {}) {
    LH_CHECK(static_cast<int64_t>(stripes.size()) <= plan_.max_stripes);
    LH_CHECK(static_cast<int64_t>(bands.size()) <= plan_.max_bands);
    kind_[head] = static_cast<int32_t>(kind);
    n_stripes_[head] = static_cast<int32_t>(stripes.size());
    n_bands_[head] = static_cast<int32_t>(bands.size());
    std::copy(stripes.begin(), stripes.end(), stripes_.begin() + head * plan_.max_stripes);
    std::copy(bands.begin(), bands.end(), bands_.begin() + head * plan_.max_bands);
    kept_pairs_[head] = 0;
  }

  HeadKind kind(int64_t head) const { return static_cast<HeadKind>(kind_[head]); }
  int64_t kept_pairs(int64_t head) const { return kept_pairs_[head]; }
  std::vector<int32_t> stripes(int64_t head) const {
    const auto begin = stripes_.begin() + head * plan_.max_stripes;
    return {begin, begin + n_stripes_[head]};
  }
  std::vector<int32_t> bands(int64_t head) const {
    const auto begin = bands_.begin() + head * plan_.max_bands;
    return {begin, begin + n_bands_[head]};
  }
  const SparsePlan& plan() const { return plan_; }

 private:
  std::vector<int32_t> kind_, n_stripes_, stripes_, n_bands_, bands_;
  std::vector<int64_t> kept_pairs_;
  SparsePlan plan_;
};

}  // namespace longhaul::testing
