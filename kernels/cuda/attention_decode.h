// Decode attention on the GPU: AttendDecode of args.h. Host entry points; asynchronous on the
// stream, allocate nothing, read no lengths on the host, so that a captured graph stays right while
// the contexts grow. The caller (the CUDA backend) checks the returned error and owns the scratch
// memory, which one call at a time may use.
//
// All pages of the batch, times the kv heads, form one list that is cut into equal shares, one per
// block: a single context of a million tokens keeps all multiprocessors busy, and many short ones
// are not cut at all. What a cut divides is merged by log-sum-exp. The result therefore depends, by
// rounding, on what else is in the batch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/attention_dense.h"  // DeviceLimits

namespace longhaul::cuda {

// Bytes of scratch (16-byte aligned device memory): depends on the batch size and head_dim alone.
int64_t AttendDecodeScratchBytes(const AttendDecodeArgs& args, const DeviceLimits& limits);

// args.q and args.out are bf16, args.kvs_copy is set; args.kvs[0] gives the geometry and the layer.
// Rows whose copy has no tokens are left unwritten (the places a captured graph has to spare).
cudaError_t AttendDecode(const AttendDecodeArgs& args, const DeviceLimits& limits,
                         std::byte* scratch, cudaStream_t stream);

}  // namespace longhaul::cuda
