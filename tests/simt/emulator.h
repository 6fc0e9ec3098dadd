// What a test says to the simulated device: the seed of its disorder, its size, its failures; and
// what it learns: the faults of kernels, counts of what they did.
//
// A fault that no test waits for (FaultOf) fails the running test; after it, every call of the
// runtime gives cudaErrorIllegalAddress until Reset(). One host thread at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <string>

#include "tests/simt/block.h"

namespace longhaul::simt {

// A new order of threads and blocks. Odd seeds also run parts of a stream before anybody waits.
void SetSeed(uint64_t seed);
// Forgets errors, planned failures and what is left in the streams; memory stays.
void Reset();

// Runs `body`, waits for the device and returns the fault of the first kernel that made one, or "";
// then Reset().
std::string FaultOf(const std::function<void()>& body);

// The device: how many there are (0: no GPU), how large its memory is.
void SetDeviceCount(int n_devices);
void SetDeviceMemoryBytes(int64_t n_bytes);
// What the device says that it is: sm_90 or, as at the start, sm_80. Kernels run on either.
void SetDeviceIsHopper(bool is_hopper);
// The launch after n_more further ones returns `error`.
void FailLaunch(int n_more, cudaError_t error);

// Since the last call.
Statistics TakeStatistics();

}  // namespace longhaul::simt
