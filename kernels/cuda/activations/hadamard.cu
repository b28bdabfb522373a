#include <cmath>

#include "kernels/cuda/activations/launchers.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/dispatch.cuh"

namespace nibblenet {
namespace {

constexpr int elements_of_a_lane = 8;

/// Where the first of the eight values lies that thread `i` of the grid holds: neighbours of a
/// block.
__device__ int64_t first_place(const Rotation& rotation, int64_t i) {
  const int64_t lanes = rotation.block / elements_of_a_lane;
  const int64_t block = i / lanes, in_block = i % lanes * elements_of_a_lane;
  return block / rotation.stride * (rotation.block * rotation.stride) + in_block * rotation.stride +
         block % rotation.stride;
}

/// hadamard_transform() with a block in 1 to 32 neighbouring lanes, eight values each: pairs up to
/// 4 apart meet in registers, the others by shuffles. In place where y is x.
template <class T>
__global__ void hadamard_kernel(T* y, const T* x, Rotation rotation, float factor, int64_t lanes) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const bool inside = i < lanes;  // those outside take part in shuffles
  const int64_t first = inside ? first_place(rotation, i) : 0;
  float values[elements_of_a_lane] = {};
  if (inside) {
#pragma unroll
    for (int e = 0; e < elements_of_a_lane; ++e) values[e] = load_element(x, first + e * rotation.stride);
  }
#pragma unroll
  for (int distance = 1; distance < elements_of_a_lane; distance *= 2)
#pragma unroll
    for (int e = 0; e < elements_of_a_lane; ++e) {
      if ((e & distance) != 0) continue;
      const float a = values[e], b = values[e + distance];
      values[e] = a + b;
      values[e + distance] = a - b;
    }
  for (int distance = 1; distance < static_cast<int>(rotation.block) / elements_of_a_lane; distance *= 2) {
    const bool is_second = (threadIdx.x & static_cast<unsigned>(distance)) != 0;
#pragma unroll
    for (int e = 0; e < elements_of_a_lane; ++e) {
      const float other = __shfl_xor_sync(0xFFFFFFFFU, values[e], distance);
      values[e] = is_second ? other - values[e] : values[e] + other;
    }
  }
  if (!inside) return;
#pragma unroll
  for (int e = 0; e < elements_of_a_lane; ++e) store_element(y, first + e * rotation.stride, values[e] * factor);
}

}  // namespace

namespace cuda {

void hadamard(Activations y, ConstActivations x, Rotation rotation, Stream& stream) {
  constexpr unsigned threads = 128;
  const int64_t lanes = x.elements() / elements_of_a_lane;
  const Grid grid{dim3(static_cast<unsigned>(ceil_div(lanes, int64_t{threads}))), threads};
  with_pointers_of_one(y, x, [&]<class T>(T* to, const T* from) {
    launch("hadamard", moves({y, x}), grid, stream, hadamard_kernel<T>, to, from, rotation,
           1.0F / std::sqrt(static_cast<float>(rotation.block)), lanes);
  });
}

}  // namespace cuda
}  // namespace nibblenet
