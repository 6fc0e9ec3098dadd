// One plain loop per op of kernels/backend.h: the specification of every fast op. Sums in f64, one
// thread, no SIMD, no cleverness. Free functions; kernels/ref/ref_backend.cc makes them a Backend.
#pragma once

#include "kernels/args.h"

namespace longhaul::ref {

// Element i of a tensor or KV row of dtype f32, bf16 or f16.
float LoadElement(const void* data, DType dtype, int64_t i);

// Row-major [n_out, n_in] f32.
struct MatrixF32 {
  const float* data = nullptr;
  int64_t n_out = 0;
  int64_t n_in = 0;
};

void Embed(const EmbedArgs& args);
void RmsNorm(const RmsNormArgs& args);
void Linear(const LinearArgs& args, MatrixF32 weight);
void SwiGlu(const SwiGluArgs& args);
void RouteExperts(const RouteExpertsArgs& args);
void GatherRows(const GatherRowsArgs& args);
void ScatterAddRows(const ScatterAddRowsArgs& args);
void RopeTable(const RopeTableArgs& args);
void RopeKvWrite(const RopeKvWriteArgs& args);
void CopyPages(const CopyPagesArgs& args);

void AttendDense(const AttendDenseArgs& args);
void AttendDecode(const AttendDecodeArgs& args);
void AttendSparse(const AttendSparseArgs& args);

void SampleLse(const SampleLseArgs& args);
void SampleMass(const SampleMassArgs& args);

}  // namespace longhaul::ref
