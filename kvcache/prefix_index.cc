#include "kvcache/prefix_index.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "kernels/base/check.h"
#include "xxhash.h"

namespace longhaul {
namespace {

uint64_t ChainHash(uint64_t previous, PageTokens tokens) {
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), previous);
}

}  // namespace

PrefixCursor PrefixIndex::Root(std::string key) {
  const uint64_t hash = XXH3_64bits(key.data(), key.size());
  return PrefixCursor{.root = std::make_shared<const std::string>(std::move(key)), .hash = hash};
}

bool PrefixIndex::Matches(const Node& node, const PrefixCursor& cursor, PageTokens tokens) const {
  if (node.parent_id != cursor.node_id) return false;
  if (node.parent_id == 0 && node.root != cursor.root && *node.root != *cursor.root) return false;
  return std::equal(tokens.begin(), tokens.end(), node.tokens);
}

std::optional<int32_t> PrefixIndex::Find(const PrefixCursor& cursor, PageTokens tokens) const {
  const auto it = by_hash_.find(ChainHash(cursor.hash, tokens));
  if (it == by_hash_.end() || !Matches(*nodes_[it->second], cursor, tokens)) return std::nullopt;
  return it->second;
}

PrefixCursor PrefixIndex::Behind(const PrefixCursor& cursor, int32_t page) const {
  const Node& node = *nodes_[page];
  return PrefixCursor{.root = cursor.root, .hash = node.hash, .node_id = node.id};
}

bool PrefixIndex::Insert(const PrefixCursor& cursor, PageTokens tokens, int32_t page) {
  LH_CHECK(nodes_[page] == nullptr);
  int32_t parent_page = -1;
  if (cursor.node_id != 0) {
    const auto parent = page_of_node_.find(cursor.node_id);
    if (parent == page_of_node_.end()) return false;
    parent_page = parent->second;
  }
  const uint64_t hash = ChainHash(cursor.hash, tokens);
  if (!by_hash_.emplace(hash, page).second) return false;

  auto node = std::make_unique<Node>();
  node->hash = hash;
  node->id = next_id_++;
  node->parent_id = cursor.node_id;
  node->parent_page = parent_page;
  if (parent_page < 0) node->root = cursor.root;
  std::copy(tokens.begin(), tokens.end(), node->tokens);
  page_of_node_.emplace(node->id, page);
  if (parent_page >= 0) ++nodes_[parent_page]->n_children;
  nodes_[page] = std::move(node);
  return true;
}

void PrefixIndex::Erase(int32_t page) {
  LH_CHECK(nodes_[page] != nullptr && nodes_[page]->n_children == 0);
  const Node& node = *nodes_[page];
  by_hash_.erase(node.hash);
  page_of_node_.erase(node.id);
  if (node.parent_page >= 0) --nodes_[node.parent_page]->n_children;
  nodes_[page].reset();
}

absl::Status PrefixIndex::CheckIntegrity() const {
  std::vector<int32_t> n_children(nodes_.size(), 0);
  int64_t n_nodes = 0;
  for (size_t page = 0; page < nodes_.size(); ++page) {
    if (nodes_[page] == nullptr) continue;
    ++n_nodes;
    const Node& node = *nodes_[page];
    const auto it = by_hash_.find(node.hash);
    if (it == by_hash_.end() || it->second != static_cast<int32_t>(page)) {
      return absl::InternalError(
          fmt::format("prefix index: page {} is not found by its hash", page));
    }
    if (node.parent_page < 0) continue;
    const Node* parent = nodes_[node.parent_page].get();
    if (parent == nullptr || parent->id != node.parent_id) {
      return absl::InternalError(
          fmt::format("prefix index: page {} has lost its parent page {}", page, node.parent_page));
    }
    ++n_children[node.parent_page];
  }
  if (n_nodes != static_cast<int64_t>(by_hash_.size()) ||
      n_nodes != static_cast<int64_t>(page_of_node_.size())) {
    return absl::InternalError(fmt::format("prefix index: {} nodes, {} hashes, {} ids", n_nodes,
                                           by_hash_.size(), page_of_node_.size()));
  }
  for (size_t page = 0; page < nodes_.size(); ++page) {
    if (nodes_[page] != nullptr && nodes_[page]->n_children != n_children[page]) {
      return absl::InternalError(fmt::format("prefix index: page {} counts {} children, has {}",
                                             page, nodes_[page]->n_children, n_children[page]));
    }
  }
  return absl::OkStatus();
}

}  // namespace longhaul
