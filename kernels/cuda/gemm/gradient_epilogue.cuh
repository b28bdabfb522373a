#pragma once

#include "kernels/cuda/device/element.cuh"

namespace nibblenet {

__device__ __forceinline__ uint4 eight_fp16(const float (&values)[8]) {
  return {pair_of_fp16(values[0], values[1]), pair_of_fp16(values[2], values[3]), pair_of_fp16(values[4], values[5]),
          pair_of_fp16(values[6], values[7])};
}

/// Epilogue of a data gradient (GradientStore) for fp16 values, eight at a time. Requires 16-byte
/// aligned dx and ReLU output.
struct HalfGradient {
  uint4* dx;
  const uint4* relu_output;  ///< null: no ReLU
  uint32_t* overflow;        ///< null: no check

  /// Stores elements [8 i, 8 i + 8) of dx.
  __device__ __forceinline__ void store(int64_t i, uint4 v) const {
    if (relu_output != nullptr) {
      const uint4 y = relu_output[i];
      v = {v.x & greater_fp16x2(y.x, 0), v.y & greater_fp16x2(y.y, 0), v.z & greater_fp16x2(y.z, 0),
           v.w & greater_fp16x2(y.w, 0)};
    }
    dx[i] = v;
    // Several threads may find an overflow; all write the same value.
    if (overflow != nullptr && (not_finite(v.x) | not_finite(v.y) | not_finite(v.z) | not_finite(v.w)) != 0)
      atomicMax(overflow, 1U);
  }

 private:
  /// Nonzero where either half is not finite. Adding 1 to an exponent of all ones, and to no other,
  /// carries into the sign bit.
  static __device__ __forceinline__ uint32_t not_finite(uint32_t pair) {
    return ((pair & 0x7C007C00U) + 0x04000400U) & 0x80008000U;
  }
};

}  // namespace nibblenet
