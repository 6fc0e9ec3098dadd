// Scheduler: prompts in flight that begin alike compute what they share once. Who would compute an
// epoch that another one computes already, or is about to, waits for its pages.
//
// Nothing is promised: leaders are chosen anew for every step, from who is there. A leader that
// ends leaves what it published, and its followers compute on from there. Whoever waits has a
// leader that is ahead, by an order in which no circle is possible, and lends it its priority: so
// somebody of the best priority always computes.
#include <algorithm>
#include <string>

#include "engine/scheduler.h"

namespace longhaul {
namespace {

int64_t CommonTokens(const Sequence& a, const Sequence& b) {
  const std::vector<int32_t>& x = a.request.prompt;
  const std::vector<int32_t>& y = b.request.prompt;
  return std::mismatch(x.begin(), x.end(), y.begin(), y.end()).first - x.begin();
}

// Of two that begin the same epoch.
bool IsAhead(const Sequence& a, const Sequence& b) {
  const int32_t a_layer = a.cursor.Next().layer_begin;
  const int32_t b_layer = b.cursor.Next().layer_begin;
  return a_layer != b_layer ? a_layer > b_layer : a.id < b.id;
}

}  // namespace

// Prompts are compared here, once; a million tokens take less than a millisecond.
void Scheduler::LinkRelatives(Sequence& sequence) {
  if (!config_.enable_prefix_caching) return;
  const std::string root = PrefixRoot(sequence);
  for (const SequencePtr& other : running_) {
    // Who goes layer by layer publishes at its end only.
    if (!other->prefilling() || other->cursor.by_layer()) continue;
    if (PrefixRoot(*other) != root) continue;
    const int64_t common_tokens = CommonTokens(sequence, *other);
    if (common_tokens < kPageTokens) continue;
    sequence.relatives.push_back({.sequence = other.get(), .common_tokens = common_tokens});
    other->relatives.push_back({.sequence = &sequence, .common_tokens = common_tokens});
  }
}

void Scheduler::UnlinkRelatives(Sequence& sequence) {
  for (const Relative& relative : sequence.relatives) {
    Sequence& other = *relative.sequence;
    std::erase_if(other.relatives,
                  [&](const Relative& back) { return back.sequence == &sequence; });
    if (other.leader == &sequence) other.leader = nullptr;
  }
  sequence.relatives.clear();
  sequence.leader = nullptr;
}

// What was published since it was admitted.
void Scheduler::TakeOver(Sequence& sequence) {
  const int64_t cached_before = sequence.cached_tokens;
  TakeMatch(sequence);
  counters_.joined_tokens += sequence.cached_tokens - cached_before;
}

void Scheduler::FollowLeaders() {
  for (const SequencePtr& sequence : running_) {
    if (!sequence->prefilling()) continue;
    sequence->turn_priority = sequence->request.priority;
    // A short prompt gives its slot back soon if only it is served.
    if (!sequence->is_long) {
      sequence->turn_priority = std::min(sequence->turn_priority, slot_wanted_by_);
    }
    sequence->leader = nullptr;
    if (sequence->relatives.empty() || !sequence->cursor.at_border()) continue;
    TakeOver(*sequence);
  }
  for (const SequencePtr& sequence : running_) {
    if (sequence->prefilling()) sequence->leader = LeaderOf(*sequence);
  }
  for (const SequencePtr& sequence : running_) {
    for (Sequence* leader = sequence->leader; leader != nullptr; leader = leader->leader) {
      leader->turn_priority = std::min(leader->turn_priority, sequence->request.priority);
    }
  }
}

Sequence* Scheduler::LeaderOf(const Sequence& sequence) const {
  if (!sequence.cursor.at_border()) return nullptr;
  const int64_t begin = sequence.cursor.begin();
  const MatchRule rule = sequence.CacheRule(config_.epoch_tokens);
  Sequence* leader = nullptr;
  for (const Relative& relative : sequence.relatives) {
    const Sequence& other = *relative.sequence;
    if (other.cursor.begin() != begin || !IsAhead(other, sequence)) continue;
    // A long prompt may have to wait for its turn longer than a short one takes.
    if (other.is_long && !sequence.is_long) continue;
    // What the other will publish at the end of its epoch, as far as this one may take it over.
    const PrefillCells next = other.cursor.Next();
    int64_t end = other.PublishableTokens(next.end, config_.epoch_tokens);
    end = std::min({end, relative.common_tokens, rule.limit_tokens});
    end -= end % rule.grain_tokens;
    if (end <= begin) continue;
    // Both at once would have half of the time each, so twice the own cost is no later. The other
    // one's text is known better by now, and is the same.
    const double wait_us = cost_.PrefillUs(other.CellsWork(next));
    const double own_us = cost_.PrefillUs(other.CellsWork(
        {.begin = begin, .end = end, .layer_begin = 0, .layer_end = shape_.n_layers}));
    if (wait_us > 2 * own_us) continue;
    if (leader == nullptr || IsAhead(other, *leader)) leader = relative.sequence;
  }
  return leader;
}

}  // namespace longhaul
