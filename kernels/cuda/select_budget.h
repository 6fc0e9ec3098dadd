// Fixed budgets (vertical_slash) on the device: SelectBudget with the results of
// kernels/select_budget.cc, which is the specification: the same mass gives the same lists, bit for
// bit, whatever the order of the threads; nothing is read back.
//
// Host entry points: they enqueue kernels on `stream` and return at once. They allocate nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"

namespace longhaul::cuda {

int64_t SelectBudgetScratchBytes(int64_t n_heads, int64_t n_keys);

// scratch: device memory, 16-byte aligned, SelectBudgetScratchBytes(rows of mass_sum, its columns).
[[nodiscard]] cudaError_t SelectBudget(const SelectBudgetArgs& args, std::byte* scratch,
                                       cudaStream_t stream);

}  // namespace longhaul::cuda
