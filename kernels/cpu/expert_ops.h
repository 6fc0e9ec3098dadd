// Ops of the CPU backend for mixtures of experts: routing, and moving rows to their experts and
// back. Rows over the pool; a row's result does not depend on the rows around it or on the number
// of threads. Called from the rank thread that owns the pool.
#pragma once

#include "kernels/args.h"
#include "kernels/base/thread_pool.h"

namespace longhaul::cpu {

void RouteExperts(const RouteExpertsArgs& args, ThreadPool& pool);
void GatherRows(const GatherRowsArgs& args, ThreadPool& pool);
void ScatterAddRows(const ScatterAddRowsArgs& args, ThreadPool& pool);

}  // namespace longhaul::cpu
