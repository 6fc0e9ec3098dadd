// The budget of SampleAttention as pure logic on host memory: which keys a head keeps, which heads
// stream, which are repaired. One head per call and no state, so a backend may run heads in
// parallel.
//
// Shared by kernels/ref and kernels/cpu: it is the specification and fast enough (three passes over
// N floats per head). It does not compute mass, see SampleMass.
#pragma once

#include <cstdint>

#include "kernels/args.h"
#include "kernels/select_math.h"

namespace longhaul {

// Writes the plan entries of query head `head` (absolute number), see SelectKeysArgs.
void SelectKeysOfHead(const SelectKeysArgs& args, int64_t head);

// Writes choice[head], and the plan entry where it is kChosen, see SelectStreamingArgs.
void SelectStreamingOfHead(const SelectStreamingArgs& args, int64_t head);

// Writes recall, repair and alpha of one head, see AuditArgs.
void AuditHead(const AuditArgs& args, int64_t head);

}  // namespace longhaul
