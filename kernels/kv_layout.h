// Geometry of the paged KV cache, and KvView: one sequence's keys and values at one layer as a
// kernel sees them. Pure arithmetic; who owns which page is decided in kvcache/.
//
// Pool order is [page][layer][kv_head][K | V], so a page holds all layers of 64 tokens and moving a
// page between tiers is one copy. K and V of one (page, layer, head) are [64, head_dim], row-major;
// in fp8 each is followed by the scales of its rows, one byte each.
//
// Why a scale per token and head. What is in a page must be a function of the tokens before it
// alone, or the prefix cache would hand out different numbers than a cold run computes: a scale per
// page would have to be changed while decode fills it. A scale per tensor, from the checkpoint or
// the first prompt (what other servers do), needs calibration and clips what calibration did not
// see. A row's own costs 1/head_dim more memory, needs nothing, and clips nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace longhaul {

inline constexpr int64_t kPageTokens = 64;

// Bytes of the keys, or of the values, of one head in one page.
constexpr int64_t KvBlockBytes(int64_t head_dim, DType dtype) {
  const int64_t scale_bytes = dtype == DType::kF8E4M3 ? 1 : 0;
  return kPageTokens * (head_dim * static_cast<int64_t>(DTypeBytes(dtype)) + scale_bytes);
}

// Keys and values of one sequence at one layer. Valid during one step.
struct KvView {
  std::byte* pool = nullptr;       // first byte of page 0
  const int32_t* pages = nullptr;  // [ceil(n_tokens / 64)] page ids in token order
  int64_t n_tokens = 0;            // tokens [0, n_tokens) may be read or written
  int64_t page_stride_bytes = 0;
  int64_t layer_offset_bytes = 0;  // of this layer inside a page
  int64_t head_stride_bytes = 0;   // between kv heads; V follows K after half of it
  int32_t n_kv_heads = 0;
  int32_t head_dim = 0;
  DType dtype = DType::kF32;  // kF32, kBF16 or kF8E4M3

  // [64, head_dim] of the page that holds token page_idx * 64.
  std::byte* Keys(int64_t page_idx, int64_t kv_head) const {
    return pool + pages[page_idx] * page_stride_bytes + layer_offset_bytes +
           kv_head * head_stride_bytes;
  }
  std::byte* Values(int64_t page_idx, int64_t kv_head) const {
    return Keys(page_idx, kv_head) + head_stride_bytes / 2;
  }
  int64_t RowBytes() const { return head_dim * static_cast<int64_t>(DTypeBytes(dtype)); }
  // Of kF8E4M3: [64] scales of the rows of `block`, which is Keys() or Values() of a page.
  uint8_t* RowScales(std::byte* block) const {
    return reinterpret_cast<uint8_t*>(block) + kPageTokens * RowBytes();
  }
};

struct KvLayout {
  int32_t n_layers = 0;
  int32_t n_kv_heads = 0;  // of this rank
  int32_t head_dim = 0;
  DType dtype = DType::kF32;

  int64_t HeadBytes() const { return 2 * KvBlockBytes(head_dim, dtype); }
  int64_t LayerBytes() const { return n_kv_heads * HeadBytes(); }
  int64_t PageBytes() const { return n_layers * LayerBytes(); }

  KvView View(void* pool, const int32_t* pages, int64_t n_tokens, int32_t layer) const {
    return KvView{.pool = static_cast<std::byte*>(pool),
                  .pages = pages,
                  .n_tokens = n_tokens,
                  .page_stride_bytes = PageBytes(),
                  .layer_offset_bytes = layer * LayerBytes(),
                  .head_stride_bytes = HeadBytes(),
                  .n_kv_heads = n_kv_heads,
                  .head_dim = head_dim,
                  .dtype = dtype};
  }
};

}  // namespace longhaul
