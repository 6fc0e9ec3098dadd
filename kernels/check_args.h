// The promises of kernels/args.h as checks: every op of a host backend starts with one of these, so
// a wrong shape stops with a file and a line instead of reading past a tensor. Constant time per
// call. `activations` is Backend::activation_dtype().
#pragma once

#include "kernels/args.h"

namespace longhaul {

void CheckArgs(const EmbedArgs& args);
void CheckArgs(const RmsNormArgs& args, DType activations = DType::kF32);
void CheckArgs(const LinearArgs& args, DType activations = DType::kF32);
void CheckArgs(const SwiGluArgs& args, DType activations = DType::kF32);
void CheckArgs(const RouteExpertsArgs& args);
void CheckArgs(const GatherRowsArgs& args, DType activations = DType::kF32);
void CheckArgs(const ScatterAddRowsArgs& args);
void CheckArgs(const RopeTableArgs& args);
void CheckArgs(const RopeKvWriteArgs& args, DType activations = DType::kF32);
void CheckArgs(const AttendDenseArgs& args, DType activations = DType::kF32);
void CheckArgs(const AttendDecodeArgs& args, DType activations = DType::kF32);
void CheckArgs(const SampleLseArgs& args, DType activations = DType::kF32);
void CheckArgs(const SampleMassArgs& args, DType activations = DType::kF32);
void CheckArgs(const SelectStreamingArgs& args);
void CheckArgs(const SelectKeysArgs& args);
void CheckArgs(const SelectBudgetArgs& args);
void CheckArgs(const AttendSparseArgs& args, DType activations = DType::kF32);
void CheckArgs(const AuditArgs& args);

}  // namespace longhaul
