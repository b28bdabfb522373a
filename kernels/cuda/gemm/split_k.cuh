#pragma once

#include "kernels/cuda/device/gpu.h"

namespace nibblenet {

struct SplitSemaphore {
  bool last;
};

/// Split-K semaphore: whether this block is the last of `splits` to arrive. The last block sees the
/// other blocks' writes, and the semaphore is 0 again. All threads.
__device__ __forceinline__ bool arrives_last(unsigned& semaphores, int splits) {
  __threadfence();  // makes the writes visible before the count
  __syncthreads();
  auto& semaphore = shared<SplitSemaphore>();
  if (threadIdx.x == 0) {
    semaphore.last = atomicAdd(&semaphores, 1U) == static_cast<unsigned>(splits) - 1U;
    if (semaphore.last) semaphores = 0;  // for the next product
  }
  __syncthreads();
  if (semaphore.last) __threadfence();
  return semaphore.last;
}

}  // namespace nibblenet
