// Ops of the CPU backend that treat every token by itself: embedding, norm, activation, rotation.
// Memory-bound; Highway within a row, the pool over rows. A row's result does not depend on the
// rows around it or on the number of threads. Called from the rank thread that owns the pool.
#pragma once

#include "kernels/args.h"
#include "kernels/base/thread_pool.h"

namespace longhaul::cpu {

void Embed(const EmbedArgs& args, ThreadPool& pool);
void RmsNorm(const RmsNormArgs& args, ThreadPool& pool);
void SwiGlu(const SwiGluArgs& args, ThreadPool& pool);
// Row t of the same, for whoever goes on with it at once; out: [E] or [F]. Any thread.
void RmsNormRow(const RmsNormArgs& args, int64_t t, float* out);
void SwiGluRow(const SwiGluArgs& args, int64_t t, float* out);
void RopeTable(const RopeTableArgs& args, ThreadPool& pool);
void RopeKvWrite(const RopeKvWriteArgs& args, ThreadPool& pool);
void CopyPages(const CopyPagesArgs& args, ThreadPool& pool);

}  // namespace longhaul::cpu
