// BpeModel: byte-pair merges inside one piece of text. Immutable after construction; any thread,
// each with its own Scratch. Knows neither pre-tokenizers nor special tokens.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"

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
  bool ignore_merges = false;       // a piece that is a token stays whole
  bool fuse_unk = false;            // neighbouring unknown symbols give one unk
  int32_t unk_id = -1;              // -1: unknown symbols vanish
  std::array<int32_t, 256>
      byte_ids;  // tokens <0x00> ... <0xFF>; byte_ids[0] = -1: no byte fallback
};

class BpeModel {
 public:
  explicit BpeModel(BpeSpec spec);

  // Working memory of one thread, reused between pieces.
  class Scratch {
   private:
    friend class BpeModel;
    // Where the merge of one rank may be done; positions before `done` are.
    struct Bucket {
      std::vector<int32_t> positions;
      size_t done = 0;
      bool sorted = true;
    };
    std::vector<int32_t> ids;
    std::vector<int32_t> ranks;  // short pieces: rank of the merge of symbol i and i + 1
    std::vector<int32_t> next;   // long pieces: linked list over ids
    std::vector<int32_t> previous;
    absl::flat_hash_map<int32_t, Bucket> buckets;  // by rank
    std::vector<int32_t> ranks_left;               // heap of the ranks that have a bucket
  };

  // Appends the ids of one piece. O(n log n) in its length.
  void Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

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
  static constexpr int32_t kNoMerge = INT32_MAX;
  // Up to here a scan for the best rank beats the heap.
  static constexpr size_t kShortPiece_symbols = 48;

  void BuildSymbols();
  void BuildWholeTokens();
  int32_t CharId(uint32_t code_point) const;  // -1: no such symbol
  void AppendSymbols(std::string_view piece, std::vector<int32_t>* ids) const;
  Target FindMerge(int32_t left, int32_t right) const;
  void MergeShort(Scratch* scratch) const;
  void MergeLong(Scratch* scratch) const;
  static void AddCandidate(int32_t rank, int32_t position, Scratch* scratch);

  BpeSpec spec_;
  absl::flat_hash_map<uint64_t, Target> merges_;  // left << 32 | right
  absl::flat_hash_map<uint32_t, int32_t> char_ids_;
  std::array<int32_t, 256> symbol_ids_;  // by byte, or by ASCII character; -1: unknown
  // Pieces known to encode as a single token: most words of a text. Keys point into spec_.tokens.
  absl::flat_hash_map<std::string_view, int32_t> whole_;
  // left << 21 | right code points that are neighbours inside some token; characters only.
  absl::flat_hash_set<uint64_t> neighbours_;
};

}  // namespace longhaul
