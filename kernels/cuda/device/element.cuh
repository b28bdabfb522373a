#pragma once

#include "engine/core/half.h"
#include "kernels/cuda/device/gpu.h"

namespace nibblenet {

// Activations are float or f16 in memory and float32 in registers.

__device__ __forceinline__ float load_element(const float* data, int64_t index) { return data[index]; }
__device__ __forceinline__ float load_element(const f16* data, int64_t index) {
  return __half2float(__half(__half_raw{data[index].bits}));
}

__device__ __forceinline__ void store_element(float* data, int64_t index, float value) { data[index] = value; }
__device__ __forceinline__ void store_element(f16* data, int64_t index, float value) {
  data[index].bits = static_cast<__half_raw>(__float2half_rn(value)).x;
}

/// Two fp16 values in one word, the first in the lower half.
__device__ __forceinline__ uint32_t pair_of_fp16(float first, float second) {
  f16 pair[2];
  store_element(pair, 0, first);
  store_element(pair, 1, second);
  return pair[0].bits | static_cast<uint32_t>(pair[1].bits) << 16;
}

/// Value e of eight fp16 values in four words.
__device__ __forceinline__ float fp16_in(const uint32_t (&words)[4], int e) {
  const f16 half = {static_cast<uint16_t>(words[e / 2] >> e % 2 * 16)};
  return load_element(&half, 0);
}

/// Sum over the lanes of a warp, returned to each lane. Same bits on every run.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFU, value, distance);
  return value;
}

/// max(x, 0) that keeps NaN, so that a diverged network shows.
__device__ __forceinline__ float relu(float x) { return x < 0.0F ? 0.0F : x; }

/// Grid-stride loop: calls f(i) for every i < count, spread over all threads of the grid.
template <class F>
__device__ __forceinline__ void for_each_index(int64_t count, F f) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) f(i);
}

}  // namespace nibblenet
