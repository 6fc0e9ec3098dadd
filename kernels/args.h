// Argument structs of the backend ops, with a shape and a dtype on every tensor.
//
// Dimension letters, used everywhere in this project:
//   T  query tokens (rows) of this call          N  keys visible to the last query row
//   E  hidden size                               F  feed-forward (intermediate) size
//   H  query heads   KH  key/value heads         G  = H / KH query heads that share one kv head
//   D  head_dim                                  V  vocabulary size
//   R  sampled rows of an epoch (voting rows first, then audit rows)
//   X  experts of a layer             K  experts that each row uses, K <= X
//   P  rotated pairs of a head: D / 2, or fewer where a model rotates part of each head
// Query head h reads kv head h / G. "any" = f32, bf16, f16. "act" = Backend::activation_dtype():
// f32 on the host backends, bf16 on CUDA.
//
// Memory: every tensor and every pointer is memory of the backend (see Backend::Upload), unless its
// comment says `host:`; host arrays are read during the call and may change as soon as it returns.
// Structs are host values: a KvView stands on the host and its `pages` in backend memory.
//
// Query row t of a prefill call stands at token position q_begin + t and sees keys [0, q_begin +
// t].
#pragma once

#include <cstdint>

#include "kernels/base/tensor.h"
#include "kernels/kv_layout.h"

namespace longhaul {

class LinearWeight;  // a weight matrix in a backend's own format, see backend.h

struct EmbedArgs {
  const int32_t* token_ids = nullptr;  // [T], each in [0, V)
  TensorView table;                    // [V, E] any
  TensorView out;                      // [T, E] f32, written
};

// Over the last dimension: of whole rows, or of each head of a row. Rows may be strided.
struct RmsNormArgs {
  TensorView x;       // [T, E] f32 (residual stream), or [T, H, D] act
  TensorView weight;  // [E] or [D] f32
  float eps = 1e-5f;
  TensorView out;  // shape of x, act, written; may alias x where the dtype is the same
};

// y = x W^T + bias, or y += x W^T + bias.
struct LinearArgs {
  TensorView x;                          // [T, n_in] act
  const LinearWeight* weight = nullptr;  // [n_out, n_in]
  TensorView bias = {};                  // [n_out] f32, or empty
  bool accumulate = false;               // true: add to y, which is f32 (residual stream)
  TensorView y;                          // [T, n_out] f32 or act, written
};

// out = silu(gate) * up, both halves in one fused projection.
struct SwiGluArgs {
  TensorView gate_up;  // [T, 2 F] act: gate in columns [0, F), up in [F, 2 F)
  TensorView out;      // [T, F] act, written
};

// ---- Mixture of experts: choose, gather each expert's rows, run it on them, add the results ----

// Softmax over the router's logits, then the K best experts of each row by falling weight; ties go
// to the lower expert.
struct RouteExpertsArgs {
  TensorView logits;         // [T, X] f32
  bool renormalize = false;  // the K weights of a row sum to 1
  TensorView experts;        // [T, K] i32, written
  TensorView weights;        // [T, K] f32, written
};

// out[i] = x[rows[i]].
struct GatherRowsArgs {
  TensorView x;                   // [T, E] act
  const int32_t* rows = nullptr;  // [n], each in [0, T)
  TensorView out;                 // [n, E] act, written
};

// out[rows[i]] += weights[i] * x[i].
struct ScatterAddRowsArgs {
  TensorView x;                    // [n, E] f32
  const int32_t* rows = nullptr;   // [n], each in [0, T), no two alike
  const float* weights = nullptr;  // [n]
  TensorView out;                  // [T, E] f32, added to
};

// ---- Rotary embeddings and the KV cache ----

// cos and sin of position * inv_freq, computed in f64: exact enough beyond a million tokens.
struct RopeTableArgs {
  const int64_t* positions = nullptr;  // [T]
  const double* inv_freq = nullptr;    // host: [P] radians per token, RoPE scaling already applied
  double scale = 1.0;                  // of cos and sin (the attention factor of YaRN and LongRoPE)
  TensorView cos_sin;                  // [T, P, 2] f32, written: (cos, sin)
};

// Rotates q and k (half-split form of Hugging Face Llama: element i pairs with i + P, for i < P)
// and writes k and v into the pages. Elements from 2 P on stay as they are. Checkpoints that pair
// neighbours (2 i with 2 i + 1) are reordered when they are loaded, so there is one rotation here.
// Row t belongs to sequence t / rows_per_kv.
//
// Dual chunk attention (An et al., arXiv 2402.17463) has a second and a third rotation of each
// query, see DualChunkQueries. cos_sin is then made of the positions inside the chunks.
struct DualChunkRope {
  TensorView next_cos_sin;         // [T, P, 2] f32
  TensorView far_cos_sin;          // [T, P, 2] f32
  const float* q_scale = nullptr;  // [T] factor of all three
  TensorView next;                 // [T, H, D] act, written; empty = plain attention
  TensorView far;                  // [T, H, D] act, written
};
struct RopeKvWriteArgs {
  TensorView q;                        // [T, H, D] act, rotated in place; rows may be strided
  TensorView k;                        // [T, KH, D] act, rotated in place
  TensorView v;                        // [T, KH, D] act
  TensorView cos_sin;                  // [T, P, 2] f32, P <= D / 2
  const int64_t* positions = nullptr;  // [T]
  const KvView* kvs = nullptr;         // host: [T / rows_per_kv]
  const KvView* kvs_copy = nullptr;    // the same in backend memory, see below
  int64_t rows_per_kv = 0;             // T for a prefill slice, 1 for decode rows
                                       // (on CUDA, a row whose kvs_copy has no tokens is left out)
  DualChunkRope dual = {};
};

// A batch of sequences is passed twice, so that nothing is copied per layer: `kvs` on the host, at
// the layer of the call, and `kvs_copy` in backend memory, uploaded once per step. They differ in
// layer_offset_bytes alone: that of kvs[0] holds for the whole batch. Host backends read kvs only
// and take a null kvs_copy.

// Dual chunk attention: keys are rotated by their position inside their chunk of chunk_tokens, and
// a query has a form for each distance between chunks, so that no angle exceeds what the model was
// trained on. chunk(row) - chunk(key) = 0: q itself, 1: next, 2 and more: far. In every attention
// op below.
struct DualChunkQueries {
  TensorView next;           // [T, H, D] act; rows may be strided
  TensorView far;            // [T, H, D] act
  int64_t chunk_tokens = 0;  // a multiple of 64; 0 = q meets all keys

  DualChunkQueries Slice(int64_t begin, int64_t end) const {
    if (chunk_tokens == 0) return {};
    return {next.Slice(begin, end), far.Slice(begin, end), chunk_tokens};
  }
};

// Exact causal attention of T consecutive rows of one sequence over its pages (flash attention,
// Dao et al. 2022: online softmax, no score matrix).
struct AttendDenseArgs {
  TensorView q;  // [T, H, D] act; rows may be strided
  DualChunkQueries dual = {};
  int64_t q_begin = 0;
  KvView kv;
  float scale = 0;     // 1 / sqrt(D)
  int64_t window = 0;  // row i sees keys (i - window, i] alone; 0 = all of [0, i]
  const uint8_t* head_mask =
      nullptr;          // [H] only heads with a nonzero byte are computed; null = all
  TensorView out;       // [T, H, D] act, written
  TensorView lse = {};  // [T, H] f32 natural log-sum-exp of scaled scores; or empty
};

// One decode row per sequence: row b attends to all kvs[b].n_tokens keys, or to the last `window`.
struct AttendDecodeArgs {
  TensorView q;  // [B, H, D] act; rows may be strided
  DualChunkQueries dual = {};
  const KvView* kvs = nullptr;       // host: [B]
  const KvView* kvs_copy = nullptr;  // the same in backend memory, see above
  float scale = 0;
  int64_t window = 0;  // 0 = all keys
  TensorView out;      // [B, H, D] act, written
};

// ---- SampleAttention (arXiv 2406.15486), the ops of engine/model/sparse_attention.cc ----

// What every row keeps whatever the samples say. Key j is "local" to row i when j < sink or
// i - j < window; every other visible key is "remote" and is kept only through a stripe or a band.
struct LocalPattern {
  int64_t sink = 64;      // first keys
  int64_t window = 1024;  // keys (i - window, i]; a multiple of 64
};

// Pass 1 over the sampled rows: log-sum-exp over all visible keys, and over local keys only.
struct SampleLseArgs {
  TensorView q;  // [T, H, D] act; rows may be strided
  DualChunkQueries dual = {};
  int64_t q_begin = 0;
  KvView kv;
  float scale = 0;
  LocalPattern local;
  const int32_t* rows = nullptr;  // [R] row numbers in [0, T), voting rows first
  int64_t n_rows = 0;             // R
  TensorView lse_full;            // [H, R] f32, written
  TensorView lse_local;           // [H, R] f32, written; -inf where no key is local (cannot happen)
};

inline constexpr int64_t kBandWidth = 64;  // keys of one diagonal band: offsets [64 b, 64 b + 64)

enum class MassScope : uint8_t {
  kRemote,  // only remote (row, key) pairs count: the local ones are kept anyway
  kAll,     // all pairs count, as published (preset `paper`)
};

// How the keys of a head are chosen, decided after pass 1: a byte of each head.
inline constexpr uint8_t kChooseByMass = 0;
inline constexpr uint8_t kChosen = 1;  // the plan entry is final
inline constexpr uint8_t kChooseByBudget = 2;

// Pass 2 over the voting rows of the query heads of kv heads [kv_head_begin, kv_head_end):
// softmax mass per key and per diagonal band. Row r of the outputs is query head
// kv_head_begin * G + r. Heads that are kChosen are left unwritten.
struct SampleMassArgs {
  TensorView q;  // [T, H, D] act; rows may be strided
  DualChunkQueries dual = {};
  int64_t q_begin = 0;
  KvView kv;
  float scale = 0;
  LocalPattern local;
  MassScope scope = MassScope::kRemote;
  const int32_t* rows = nullptr;  // [n_voting]
  int64_t n_voting = 0;
  int64_t kv_head_begin = 0;
  int64_t kv_head_end = 0;
  const uint8_t* choice = nullptr;  // [H]; null = all need mass
  TensorView lse_full;              // [H, R] f32 from pass 1
  TensorView mass_sum;              // [heads, N] f32, written: sum over voting rows of p(row, key)
  TensorView mass_max;              // [heads, N] f32, written: maximum over voting rows
  TensorView band_mass = {};        // [heads, ceil(N / 64)] f32, written; or empty (no bands)
};

enum class HeadKind : int32_t {
  kStreaming = 0,  // local keys only
  kSparse = 1,     // local keys, stripes and bands
  kDense = 2,      // all visible keys
};

// Which keys each query head keeps in one epoch. Row i of head h keeps key j <= i when j is local,
// or j is in a stripe of h, or (i - j) / 64 is a band of h, or h is dense. Filled by SelectKeys or
// by any other pattern source; read by AttendSparse. All arrays live in memory of the backend.
struct SparsePlan {
  LocalPattern local;
  int64_t stripe_width = 1;  // a stripe s covers keys [s, s + stripe_width); 1, 8, 16 or 64
  int64_t max_stripes = 0;
  int64_t max_bands = 0;
  int32_t* kind = nullptr;       // [H] HeadKind
  int32_t* n_stripes = nullptr;  // [H]
  int32_t* stripes = nullptr;    // [H, max_stripes] first keys, ascending multiples of stripe_width
  int32_t* n_bands = nullptr;    // [H]
  int32_t* bands = nullptr;      // [H, max_bands] ascending band numbers b >= window / 64
  int64_t* kept_pairs = nullptr;  // [H] (row, key) pairs kept in this epoch
};

// Budget: turns the mass of heads [head_begin, head_begin + heads) into their part of the plan.
// A head whose local mass already reaches alpha streams. Else candidates (stripes, bands) are taken
// by mass per padded cost, largest first, until local + taken mass >= alpha; candidates whose
// maximum over the voting rows reaches keep_max are taken first, whatever their sum. No sort: a
// histogram of 256 logarithmic buckets finds the cut-off, one scan compacts, ties (one bucket) go
// to the lower key, stripes before bands, so the result is deterministic. A head that would cost
// more than dense_cost_fraction of dense becomes dense, and so does one whose lists do not fit the
// plan.
//
// A stripe's mass and cost are sums over its keys; a key costs one pair per row to which it is
// remote, so keys that are sinks, or in the window of every row, are no candidates. A band costs
// its remote pairs * (64 + 64 - 1) / 64: a tile of 64 rows loads it as a rectangle. Mass in a
// stripe and in a band is counted once, as if the two met in proportion to their mass (UnionMass);
// the audit measures what is kept.
//
// Scope kAll (preset `paper`): the target is alpha of all mass whatever the local keys hold, no
// head streams, candidates are all stripes, largest mass first, and no bands. Stripes that the
// local pattern covers count towards the target but are not listed.
struct SelectKeysArgs {
  int64_t q_begin = 0;
  int64_t n_q = 0;  // T
  int64_t n_voting = 0;
  MassScope scope = MassScope::kRemote;
  int64_t head_begin = 0;           // first query head; the mass tensors start at it
  TensorView lse_full;              // [H, R] f32
  TensorView lse_local;             // [H, R] f32
  TensorView mass_sum;              // [heads, N] f32
  TensorView mass_max;              // [heads, N] f32
  TensorView band_mass = {};        // [heads, ceil(N / 64)] f32, or empty
  const float* alpha = nullptr;     // [H] target share of the voting rows' mass, 0..1; 1 = dense
  const uint8_t* choice = nullptr;  // [H] only heads that are kChooseByMass; null = all
  float keep_max = 2.0f;            // above 1: off
  float dense_cost_fraction = 1.0f;
  SparsePlan plan;  // entries of these heads written
};

// What one head keeps besides what its rows see anyway, of vertical-slash (MInference, Jiang et
// al., arXiv 2407.02490).
struct HeadBudget {
  int32_t n_columns = 0;  // keys, the sink among them
  int32_t n_bands = 0;    // diagonal bands, those of the window among them
  int32_t by_place = 0;   // 1: the first keys and the nearest bands, whatever their mass (A-shape)
};

// The other way to fill a plan: of each head the columns and the bands of the largest mass, as many
// as its budget says; ties go to the lower key or band. What the local pattern covers for every row
// counts in the budget but is not listed. Dense are heads whose budget covers all, and those with
// more columns than the plan holds.
struct SelectBudgetArgs {
  int64_t q_begin = 0;
  int64_t n_q = 0;                      // T
  int64_t head_begin = 0;               // first query head; the mass tensors start at it
  TensorView mass_sum;                  // [heads, N] f32, of scope kAll
  TensorView band_mass;                 // [heads, ceil(N / 64)] f32, of scope kAll
  const HeadBudget* budgets = nullptr;  // [H]
  const uint8_t* choice = nullptr;      // [H] only heads that are kChooseByBudget; null = all
  SparsePlan plan;                      // stripe_width 1; entries of these heads written
};

// Marks heads that stream (local mass of the voting rows >= alpha) and writes their plan entries,
// so that pass 2 can skip them. alpha >= 1 makes every head dense.
//
// A head is local but for a few rows when its local keys hold nearly all (kLocalRow) of at least a
// share budget_rows of its voting rows. When it loses rows (less than `lost` of a voting row is
// local, or the audit of an earlier epoch raised its alpha above the target), these are too rare
// for the voting rows to choose for: it gets a budget.
inline constexpr double kLocalRow = 0.98;
struct SelectStreamingArgs {
  int64_t q_begin = 0;
  int64_t n_q = 0;
  int64_t n_voting = 0;
  TensorView lse_full;           // [H, R] f32
  TensorView lse_local;          // [H, R] f32
  const float* alpha = nullptr;  // [H]
  float target = 0;              // as the next one, see AuditArgs
  float lost = 0;
  float budget_rows = 2;      // above 1: no head gets a budget
  uint8_t* choice = nullptr;  // [H] written
  SparsePlan plan;
};

// Attention of T rows under a plan; streaming, sparse and dense heads in one call.
struct AttendSparseArgs {
  TensorView q;  // [T, H, D] act; rows may be strided
  DualChunkQueries dual = {};
  int64_t q_begin = 0;
  KvView kv;
  float scale = 0;
  SparsePlan plan;
  TensorView out;  // [T, H, D] act, written
  TensorView lse;  // [T, H] f32, written: log-sum-exp over the kept keys
};

// recall(h, row) = exp(lse_sparse - lse_full) of the audit rows: the kept softmax mass, measured.
// Sets repair[h] where a head's mean recall is below its floor.
//
// Steers alpha for the next epoch: voting rows flatter the keys that they chose, so a head whose
// audit rows keep less than the target gets a higher alpha, and so does one that lost any sampled
// row; it comes back down slowly (SteeredAlpha). Dense heads count as recall 1.
struct AuditArgs {
  const int32_t* rows = nullptr;  // [R]; audit rows are [n_voting, n_rows)
  int64_t n_voting = 0;
  int64_t n_rows = 0;
  TensorView lse_full;            // [H, R] f32
  TensorView lse_sparse;          // [T, H] f32
  float floor = 0;                // mean recall of a head below which it is repaired
  float target = 0;               // mean recall that alpha is steered to; 0 = alpha stays as it is
  float lost = 0;                 // recall of a sampled row below which it is lost
  const int32_t* kind = nullptr;  // [H] HeadKind; dense heads are never repaired
  TensorView recall;              // [H, R - n_voting] f32, written, clipped to [0, 1]
  uint8_t* repair = nullptr;      // [H] written
  float* alpha = nullptr;         // [H] in and out, at least target afterwards
};

// How a token is drawn: of the top_k likeliest (0 = all), the fewest that hold top_p of their
// probability, without those less than min_p as likely as the likeliest, each as often as its share
// says. `random` decides: any 64 bits, all equally likely. kernels/draw_token.h is exact.
struct TokenDraw {
  float temperature = 0;  // 0 = the likeliest token, whatever the rest says
  int32_t top_k = 0;
  float top_p = 1;  // (0, 1]
  float min_p = 0;  // [0, 1]
  uint64_t random = 0;
};

struct DrawTokensArgs {
  TensorView logits;                 // [T, V] f32; rows may be strided
  const TokenDraw* draws = nullptr;  // [T]
  int32_t* tokens = nullptr;         // [T] written; kBrokenLogits where a logit is NaN or +inf, or
                                     // none is finite
};

// Whole pages, all layers: dst[i] <- src[i]. Used by copy on write.
struct CopyPagesArgs {
  std::byte* pool = nullptr;
  int64_t page_bytes = 0;
  const int32_t* src = nullptr;  // host: [n]
  const int32_t* dst = nullptr;  // host: [n]
  int64_t n = 0;
};

}  // namespace longhaul
