// BpeModel: byte-pair merges inside one piece of text. Immutable after construction; any thread,
// each with its own Scratch. Knows neither pre-tokenizers nor special tokens.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "kernels/base/thread_pool.h"

namespace longhaul {

// What a tokenizer file says, checked by its reader: ids are below tokens.size(), merges name
// existing tokens. Symbols are bytes (byte-level BPE) or characters (sentencepiece style).
struct BpeSpec {
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t result;
  };
  bool byte_symbols = true;
  std::vector<std::string> tokens;  // by id; raw bytes or UTF-8; empty: no text can produce this id
  std::vector<Merge> merges;        // best first
  // Neighbours in `merges` with the same result have one rank, so that the leftmost of them goes
  // first, as in sentencepiece.
  bool results_share_rank = false;
  bool ignore_merges = false;  // a piece that is a token stays whole
  // Further pieces that give one id, whatever the merges say.
  std::vector<std::pair<std::string, int32_t>> whole_pieces;
  bool fuse_unk = false;  // neighbouring unknown symbols give one unk
  int32_t unk_id = -1;    // -1: unknown symbols vanish
  std::array<int32_t, 256>
      byte_ids;  // tokens <0x00> ... <0xFF>; byte_ids[0] = -1: no byte fallback
};

// Two neighbours as one number.
inline uint64_t BpePairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

class BpeModel {
 public:
  explicit BpeModel(BpeSpec spec);

  // Working memory of one thread, reused between pieces of one model.
  class Scratch {
   private:
    friend class BpeModel;
    // Where the merge of one rank may be done; positions before `done` are.
    struct Bucket {
      std::vector<int32_t> positions;
      size_t done = 0;
      bool sorted = true;
    };
    struct KnownPair {
      uint64_t key = ~uint64_t{0};  // no pair: ids are not negative
      int32_t rank = 0;
    };
    std::vector<int32_t> ids;
    std::vector<int32_t> ranks;  // short pieces: rank of the merge of symbol i and i + 1
    std::vector<int32_t> next;   // windows: linked list over ids
    std::vector<int32_t> previous;
    std::array<KnownPair, 256> known_pairs;  // recent answers of FindMerge: runs repeat few pairs
    std::vector<Bucket> buckets;             // with the memory of emptied ones
    std::vector<int32_t> free_buckets;
    absl::flat_hash_map<int32_t, int32_t> bucket_of;  // by rank: index into buckets
    int32_t last_rank = -1;                           // of the candidate added last
    int32_t last_bucket = -1;
    std::vector<int32_t> ranks_left;  // heap of the ranks that have a bucket
  };

  // Appends the ids of one piece. O(n log n) in its length.
  void Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  // The same by all threads of `pool`, for a piece of more than kLongPiece_bytes.
  void EncodeLong(std::string_view piece, ThreadPool* pool, std::vector<int32_t>* ids) const;
  static constexpr size_t kLongPiece_bytes = 256 << 10;

  // Ids of the pieces of `text` that end at `ends`, by all threads of `pool` (null: by this one).
  void EncodePieces(std::string_view text, const std::vector<uint32_t>& ends, ThreadPool* pool,
                    std::vector<int32_t>* ids) const;

  // Cuts `text` wherever no token can span the border, so that encoding the parts gives exactly
  // what encoding the whole gives. For models without a pre-tokenizer, whose piece is the whole
  // text.
  void CutWhereNoTokenSpans(std::string_view text, std::vector<uint32_t>* ends) const;

  bool byte_symbols() const { return spec_.byte_symbols; }

 private:
  struct Target {
    int32_t rank;
    int32_t result;
  };
  // Merged symbols: ids and where each begins, in symbols of the piece.
  struct Tokens {
    std::vector<int32_t> ids;
    std::vector<uint32_t> begins;
  };
  static constexpr int32_t kNoMerge = INT32_MAX;
  // Up to here a scan for the best rank beats the heap.
  static constexpr size_t kShortPiece_symbols = 48;
  static constexpr size_t kWindow_symbols = 4096;  // keeps a window's lists in the nearest cache

  void BuildSymbols();
  void BuildWholeTokens();
  int32_t CharId(uint32_t code_point) const;  // -1: no such symbol
  void AppendSymbols(std::string_view piece, std::vector<int32_t>* ids) const;
  Target FindMerge(int32_t left, int32_t right) const;
  void MergeShort(Scratch* scratch) const;
  int32_t RankOf(int32_t left, int32_t right, Scratch* scratch) const;
  void MergeWindow(std::span<const int32_t> symbols, uint32_t first, Scratch* scratch,
                   Tokens* tokens) const;
  void RunMerges(int32_t rank, Scratch* scratch) const;
  void AddPair(int32_t position, Scratch* scratch) const;
  bool IsMergeOf(int32_t rank, int32_t left, int32_t right, Scratch* scratch) const;
  bool MergeInWindows(std::span<const int32_t> symbols, uint32_t first, size_t n_window,
                      Scratch* scratch, Tokens* tokens) const;
  void MergeLong(std::span<const int32_t> symbols, uint32_t first, Scratch* scratch,
                 Tokens* tokens) const;

  BpeSpec spec_;
  absl::flat_hash_map<uint64_t, Target> merges_;  // left << 32 | right
  absl::flat_hash_map<uint32_t, int32_t> char_ids_;
  std::array<int32_t, 256> symbol_ids_;  // by byte, or by ASCII character; -1: unknown
  // Pieces known to encode as a single token: most words of a text. Keys point into spec_.
  absl::flat_hash_map<std::string_view, int32_t> whole_;
  // left << 21 | right code points that are neighbours inside some token; characters only.
  absl::flat_hash_set<uint64_t> neighbours_;
};

}  // namespace longhaul
