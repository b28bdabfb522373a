#pragma once

#include "engine/core/error.h"
#include "kernels/cuda/device/gpu.h"

namespace nibblenet {

/// Throws CudaError unless a call of the CUDA runtime succeeded.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail<CudaError>("{}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

}  // namespace nibblenet
