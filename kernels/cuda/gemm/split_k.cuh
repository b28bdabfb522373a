#pragma once

#include "kernels/cuda/device/gpu.h"

namespace nibblenet {

struct SplitArrival {
  bool last;
};

/// Counts one block that is done, and returns whether it is the last of `blocks`. One thread calls
/// it between two barriers of its block. Behind the first one it releases what the block wrote; in
/// front of the second one the last block acquires what all blocks wrote. The semaphore is then 0
/// again.
__device__ __forceinline__ bool count_arrival(unsigned& semaphore, int blocks) {
  const bool last = atomic_add_acq_rel(&semaphore, 1U) == static_cast<unsigned>(blocks) - 1U;
  if (last) semaphore = 0;  // for the next product
  return last;
}

/// Split-K semaphore: whether this block is the last of `splits` to arrive. The last block sees the
/// other blocks' writes. All threads.
__device__ __forceinline__ bool arrives_last(unsigned& semaphore, int splits) {
  auto& count = shared<SplitArrival>();
  __syncthreads();
  if (threadIdx.x == 0) count.last = count_arrival(semaphore, splits);
  __syncthreads();
  return count.last;
}

/// Split-K in a cluster: waits until all its blocks are here, and sees what they wrote to their
/// shared memory. All threads. One warp publishes for its block, behind a barrier, as in
/// arrives_last(): the fence of a release waits for the whole GPU.
__device__ __forceinline__ void meet_in_cluster() {
  __syncthreads();
  if (threadIdx.x < 32)
    cluster_arrive();
  else
    cluster_arrive_relaxed();
  cluster_wait();
}

}  // namespace nibblenet
