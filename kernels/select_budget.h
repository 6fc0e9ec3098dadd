// Fixed budgets of vertical-slash (MInference, arXiv 2407.02490) as pure logic on host memory: the
// columns and the diagonal bands of the largest mass of one head, as many as its budget says. One
// head per call and no state, so a backend may run heads in parallel. It does not compute mass, see
// SampleMass.
//
// Shared by kernels/ref and kernels/cpu, as kernels/select_keys.h, which chooses by a share of
// mass.
#pragma once

#include <cstdint>

#include "kernels/args.h"

namespace longhaul {

// Writes the plan entries of query head `head` (absolute number), see SelectBudgetArgs.
void SelectBudgetOfHead(const SelectBudgetArgs& args, int64_t head);

}  // namespace longhaul
