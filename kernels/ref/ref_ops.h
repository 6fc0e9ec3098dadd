// One plain loop per op of kernels/backend.h: the specification of every fast op. Sums in f64, one
// thread, no SIMD, no cleverness. Free functions; kernels/ref/ref_backend.cc makes them a Backend.
#pragma once

#include <vector>

#include "kernels/args.h"
#include "kernels/weight_format.h"

namespace longhaul::ref {

// Element i of a tensor of dtype f32, bf16 or f16.
float LoadElement(const void* data, DType dtype, int64_t i);

// x [D] = row `slot` of `block`, the keys or values of a page.
void LoadKvRow(const KvView& kv, std::byte* block, int64_t slot, float* x);

// A weight as numbers, row-major [n_out, n_in]: those of its format.
struct WeightMatrix {
  const float* data = nullptr;
  int64_t n_out = 0;
  int64_t n_in = 0;
  WeightFormat format = WeightFormat::kF32;
  const float* scales = nullptr;  // [n_out], of kInt8: the weight is data * scale
};

// Makes each row of x [n_rows, n] what the format holds of it; of kInt8 that are whole multiples of
// the scales returned, [n_rows].
std::vector<float> RoundRows(float* x, int64_t n_rows, int64_t n, WeightFormat format);

void Embed(const EmbedArgs& args);
void RmsNorm(const RmsNormArgs& args);
void Linear(const LinearArgs& args, const WeightMatrix& weight);
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
