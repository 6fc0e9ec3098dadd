// The promises of kernels/args.h as checks: every op of a host backend starts with one of these, so
// a wrong shape stops with a file and a line instead of reading past a tensor. Constant time per
// call.
#pragma once

#include "kernels/args.h"

namespace longhaul {

void CheckArgs(const EmbedArgs& args);
void CheckArgs(const RmsNormArgs& args);
void CheckArgs(const LinearArgs& args);
void CheckArgs(const SwiGluArgs& args);
void CheckArgs(const RouteExpertsArgs& args);
void CheckArgs(const GatherRowsArgs& args);
void CheckArgs(const ScatterAddRowsArgs& args);
void CheckArgs(const RopeTableArgs& args);
void CheckArgs(const RopeKvWriteArgs& args);
void CheckArgs(const AttendDenseArgs& args);
void CheckArgs(const AttendDecodeArgs& args);
void CheckArgs(const SampleLseArgs& args);
void CheckArgs(const SampleMassArgs& args);
void CheckArgs(const SelectStreamingArgs& args);
void CheckArgs(const SelectKeysArgs& args);
void CheckArgs(const AttendSparseArgs& args);
void CheckArgs(const AuditArgs& args);

}  // namespace longhaul
