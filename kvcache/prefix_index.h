// PrefixIndex: finds the page that holds the next 64 tokens after a known prefix.
//
// The pages form a forest: a node is one full page of tokens, its parent the page before it, its
// root a key that names everything else the content depends on (see CacheManager). Nodes are looked
// up by a chained xxh3 hash, and a hit counts only if parent and all 64 token ids are equal: a
// collision costs a miss, never a wrong answer, also when someone computes it on purpose.
//
// Owned by CacheManager, engine thread only. Knows neither references nor recency (PagePool does),
// and holds no page alive: the owner erases a node before its page is given to somebody else.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/base/status.h"
#include "kernels/kv_layout.h"

namespace longhaul {

using PageTokens = std::span<const int32_t, kPageTokens>;

// Opaque to this level: what an epoch of the sequence hands to the next (engine/sparse_policy.h).
using PrefixState = std::shared_ptr<const void>;

// A place in the forest: the root, or the node of the last page of a prefix.
struct PrefixCursor {
  std::shared_ptr<const std::string> root;
  uint64_t hash = 0;     // chained over the root and all pages up to here
  uint64_t node_id = 0;  // 0 at the root
};

class PrefixIndex {
 public:
  explicit PrefixIndex(int32_t n_pages) : nodes_(n_pages) {}

  static PrefixCursor Root(std::string key);

  // The page after `cursor` that holds `tokens`.
  std::optional<int32_t> Find(const PrefixCursor& cursor, PageTokens tokens) const;
  // The cursor behind an indexed page.
  PrefixCursor Behind(const PrefixCursor& cursor, int32_t page) const;
  // Enters `page` after `cursor`. False if the place is taken by another node of the same hash.
  bool Insert(const PrefixCursor& cursor, PageTokens tokens, int32_t page);
  // Removes a node that has no children.
  void Erase(int32_t page);

  bool contains(int32_t page) const { return nodes_[page] != nullptr; }
  int64_t n_nodes() const { return static_cast<int64_t>(by_hash_.size()); }
  // The state behind the page, null where none was stored.
  const PrefixState& state(int32_t page) const { return nodes_[page]->state; }
  void set_state(int32_t page, PrefixState state) { nodes_[page]->state = std::move(state); }
  // The page of the parent node; -1 for the first page of a prefix.
  int32_t parent_page(int32_t page) const { return nodes_[page]->parent_page; }

  // Parents exist and count their children, hashes lead to their nodes.
  absl::Status CheckIntegrity() const;

 private:
  struct Node {
    uint64_t hash = 0;
    uint64_t id = 0;         // never used twice, so a stale cursor finds nothing
    uint64_t parent_id = 0;  // 0: `root` is the parent
    int32_t parent_page = -1;
    int32_t n_children = 0;
    std::shared_ptr<const std::string> root;
    int32_t tokens[kPageTokens];
    PrefixState state;
  };

  bool Matches(const Node& node, const PrefixCursor& cursor, PageTokens tokens) const;

  std::vector<std::unique_ptr<Node>> nodes_;             // [n_pages], null where not indexed
  absl::flat_hash_map<uint64_t, int32_t> by_hash_;       // chained hash -> page
  absl::flat_hash_map<uint64_t, int32_t> page_of_node_;  // node id -> page
  uint64_t next_id_ = 1;
};

}  // namespace longhaul
