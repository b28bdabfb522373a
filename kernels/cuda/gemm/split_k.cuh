#pragma once

#include "kernels/cuda/device/gpu.h"

namespace nibblenet {

struct Arrival {
  bool last;
};

/// Of sums that are cut into parts, each a block's: whether this block is the last of `parts` to arrive. It sees then
/// what the others wrote before, and `arrivals` is 0 again. All threads.
__device__ __forceinline__ bool arrives_last(unsigned& arrivals, int parts) {
  __threadfence();  // what was written is seen by whoever sees the arrival
  __syncthreads();
  auto& arrival = shared<Arrival>();
  if (threadIdx.x == 0) {
    arrival.last = atomicAdd(&arrivals, 1U) == static_cast<unsigned>(parts) - 1U;
    if (arrival.last) arrivals = 0;  // for the next product
  }
  __syncthreads();
  if (arrival.last) __threadfence();
  return arrival.last;
}

}  // namespace nibblenet
