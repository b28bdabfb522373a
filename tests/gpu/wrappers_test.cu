#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.cuh"

// Each wrapper around PTX alone: what host execution cannot prove, since there the wrappers are other code.

namespace nibblenet {
namespace {

struct Tiles {
  f16 a[16][24];
  f16 b[8][24];
};

/// d[16, 8] = a[16, 16] b[8, 16]^T by one warp: cp.async brings the operands, ldmatrix the fragments.
__global__ void tile_kernel(float* d, const f16* a, const f16* b) {
  auto& tiles = shared<Tiles>();
  const int lane = static_cast<int>(threadIdx.x);
  cp_async_16(&tiles.a[lane / 2][lane % 2 * 8], a + lane * 8, true);
  cp_async_16(&tiles.b[lane / 4][lane % 2 * 8], b + lane / 4 * 16 + lane % 2 * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  uint32_t left[4];
  uint32_t right[4];
  ldmatrix_x4(left, &tiles.a[lane % 16][lane / 16 * 8]);
  ldmatrix_x4(right, &tiles.b[lane % 8][lane / 8 % 2 * 8]);
  const uint32_t pair[2] = {right[0], right[1]};
  float sum[4] = {1.0F, 2.0F, 3.0F, 4.0F};
  mma_16816(sum, left, pair);
  for (int e = 0; e < 4; ++e) d[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = sum[e] - static_cast<float>(e + 1);
}

/// y = x where the copy is valid, else 0.
__global__ void copy_kernel(float* y, const float* x) {
  struct Row {
    alignas(16) float of[128];
  };
  auto& row = shared<Row>();
  const int lane = static_cast<int>(threadIdx.x);
  cp_async_16(&row.of[lane * 4], x + lane * 4, lane % 3 != 0);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = lane; i < 128; i += 32) y[i] = row.of[i];
}

template <class T>
Buffer<T> on(CudaBackend& backend, const std::vector<T>& values) {
  Buffer<T> buffer(backend, values.size(), MemoryCategory::data);
  backend.copy_from_host(buffer.data(), values.data(), buffer.bytes());
  return buffer;
}

TEST(Wrappers, OneTileOfTheTensorCores) {
  CudaBackend backend;
  std::vector<f16> a(256), b(128);
  for (size_t i = 0; i < a.size(); ++i) a[i].bits = f32_to_f16(static_cast<float>(i % 13) - 6.0F);
  for (size_t i = 0; i < b.size(); ++i) b[i].bits = f32_to_f16(static_cast<float>(i % 7) - 3.0F);
  const Buffer<f16> left = on(backend, a), right = on(backend, b);
  Buffer<float> result(backend, 128, MemoryCategory::data);
  launch("tile", {}, {dim3(1), 32}, backend.stream(), tile_kernel, result.data(), left.data(), right.data());
  std::vector<float> d(128);
  backend.copy_to_host(d.data(), result.data(), result.bytes());
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j) {
      float expected = 0;
      for (size_t k = 0; k < 16; ++k) expected += f16_to_f32(a[i * 16 + k].bits) * f16_to_f32(b[j * 16 + k].bits);
      EXPECT_EQ(d[i * 8 + j], expected) << i << ", " << j;
    }
}

TEST(Wrappers, CopiesThatAreNotValidLeaveZeros) {
  CudaBackend backend;
  std::vector<float> x(128, 7.0F);
  const Buffer<float> source = on(backend, x);
  Buffer<float> result(backend, 128, MemoryCategory::data);
  launch("copy", {}, {dim3(1), 32}, backend.stream(), copy_kernel, result.data(), source.data());
  std::vector<float> y(128);
  backend.copy_to_host(y.data(), result.data(), result.bytes());
  for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], i / 4 % 3 != 0 ? 7.0F : 0.0F) << i;
}

TEST(Wrappers, AGraphReplaysWhatItCaptured) {
  CudaBackend backend;
  std::vector<float> ones(33, 1.0F);
  const Buffer<float> gradient = on(backend, ones);
  Buffer<float> w = on(backend, ones), v = on(backend, std::vector<float>(33, 0.0F));
  const Shape shape = {33};
  Graph graph(backend.stream(), [&] {
    backend.sgd_step({w.data(), shape}, {v.data(), shape}, {gradient.data(), shape}, {0.25F, 0.0F, 0.0F});
  });
  for (int replay = 0; replay < 3; ++replay) graph.launch(backend.stream());
  std::vector<float> result(33);
  backend.copy_to_host(result.data(), w.data(), w.bytes());
  EXPECT_EQ(result, std::vector<float>(33, 0.25F));
}

}  // namespace
}  // namespace nibblenet
