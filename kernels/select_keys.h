// The budget of SampleAttention as pure logic on host memory: which keys a head keeps, which heads
// stream, which are repaired. One head per call and no state, so a backend may run heads in
// parallel.
//
// Shared by kernels/ref and kernels/cpu: it is the specification and fast enough (three passes over
// N floats per head). It does not compute mass, see SampleMass.
#pragma once

#include <cstdint>

#include "kernels/args.h"

namespace longhaul {

// Rows [q_begin, q_end) of an epoch. Pairs are (row, key) with key <= row.
struct EpochRows {
  int64_t q_begin = 0;
  int64_t q_end = 0;
};

// All visible pairs.
int64_t CausalPairs(EpochRows rows);
// Pairs whose key is local to their row.
int64_t LocalPairs(EpochRows rows, LocalPattern local);
// Rows to which `key` is remote: what keeping the key adds beyond the local pattern.
int64_t RemoteRows(EpochRows rows, LocalPattern local, int64_t key);
// Remote pairs of stripe [begin, begin + width).
int64_t StripePairs(EpochRows rows, LocalPattern local, int64_t begin, int64_t width);
// Remote pairs of diagonal band `band`, which lies outside the window (band >= window / 64).
int64_t BandPairs(EpochRows rows, LocalPattern local, int64_t band);

// Writes the plan entries of query head `head` (absolute number), see SelectKeysArgs.
void SelectKeysOfHead(const SelectKeysArgs& args, int64_t head);

// Writes skip[head], and the plan entries where it is 1, see SelectStreamingArgs.
void SelectStreamingOfHead(const SelectStreamingArgs& args, int64_t head);

// Writes recall, repair and alpha of one head, see AuditArgs.
void AuditHead(const AuditArgs& args, int64_t head);

}  // namespace longhaul
