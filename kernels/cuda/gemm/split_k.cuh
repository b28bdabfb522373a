#pragma once

#include "kernels/cuda/device/gpu.h"

namespace nibblenet {

struct SplitArrival {
  bool last;
};

/// Counts one arrival, and returns whether it is the last of `arrivals`. By one thread, behind a
/// barrier of its block: it releases what the block wrote. In front of a barrier: the last one to
/// arrive acquires what all wrote, for its block. The semaphore is 0 again then.
__device__ __forceinline__ bool count_arrival(unsigned& semaphore, int arrivals) {
  const bool last = atomic_add_acq_rel(&semaphore, 1U) == static_cast<unsigned>(arrivals) - 1U;
  if (last) semaphore = 0;  // for the next product
  return last;
}

/// Split-K semaphore: whether this block is the last of `splits` to arrive. The last block sees the
/// other blocks' writes. All threads.
__device__ __forceinline__ bool arrives_last(unsigned& semaphore, int splits) {
  auto& arrival = shared<SplitArrival>();
  __syncthreads();
  if (threadIdx.x == 0) arrival.last = count_arrival(semaphore, splits);
  __syncthreads();
  return arrival.last;
}

}  // namespace nibblenet
