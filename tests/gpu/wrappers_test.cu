#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/device/gpu.h"
#include "kernels/cuda/device/launch.cuh"

// Each wrapper around PTX alone: what host execution cannot prove, since there the wrappers are
// other code.

namespace nibblenet {
namespace {

struct Tiles {
  f16 a[16][24];
  f16 b[8][24];
};

/// d[16, 8] = a[16, 16] b[8, 16]^T by one warp: cp.async brings the operands, ldmatrix the
/// fragments.
__global__ void tile_kernel(float* d, const f16* a, const f16* b) {
  auto& tiles = shared<Tiles>();
  const int lane = static_cast<int>(threadIdx.x);
  cp_async_16(&tiles.a[lane / 2][lane % 2 * 8], a + lane * 8, true);
  if (lane < 16) cp_async_16(&tiles.b[lane / 2][lane % 2 * 8], b + lane * 8, true);
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

/// d[16, 8] += a[16, 32] b[8, 32]^T of bytes by one warp, signed ones in b.
__global__ void byte_tile_kernel(int32_t* d, const uint32_t* a, const uint32_t* b) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const uint32_t left[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + 4 + t], a[(g + 8) * 8 + 4 + t]};
  const uint32_t right[2] = {b[g * 8 + t], b[g * 8 + 4 + t]};
  int32_t sum[4];
  for (int e = 0; e < 4; ++e) sum[e] = d[(g + e / 2 * 8) * 8 + t * 2 + e % 2];
  mma_16832(sum, left, right);
  for (int e = 0; e < 4; ++e) d[(g + e / 2 * 8) * 8 + t * 2 + e % 2] = sum[e];
}

/// y[i] = the words of x[i] shifted as one, by i, and the sum of their bytes.
__global__ void shift_kernel(uint2* y, const uint2* x) {
  const uint2 v = x[threadIdx.x];
  y[threadIdx.x] = {shift_right_double(v.x, v.y, static_cast<int>(threadIdx.x)), add_bytes(v.x, v.y)};
}

/// y[4, 32] = the registers of four transposed matrices [4, 8, 8].
__global__ void transposed_kernel(uint32_t* y, const f16* x) {
  struct Matrices {
    alignas(16) f16 rows[32][8];
  };
  auto& matrices = shared<Matrices>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int e = 0; e < 8; ++e) matrices.rows[lane][e] = x[lane * 8 + e];
  __syncthreads();
  uint32_t r[4];
  ldmatrix_x4_transposed(r, &matrices.rows[lane]);
  for (int i = 0; i < 4; ++i) y[i * 32 + lane] = r[i];
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

/// The same word by word, from the second one on.
__global__ void copy_words_kernel(float* y, const float* x) {
  struct Row {
    float of[128];
  };
  auto& row = shared<Row>();
  for (int i = static_cast<int>(threadIdx.x); i < 128; i += 32) cp_async_4(&row.of[i], x + 1 + i, i % 3 != 0);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 128; i += 32) y[i] = row.of[i];
}

/// y[i] = what the wrappers make of the four words x[i].
__global__ void words_kernel(uint4* y, const uint4* x) {
  const uint4 v = load_once_16(&x[threadIdx.x]);
  y[threadIdx.x] = {fma_fp16x2(v.x, v.y, v.z), and_or(v.x, v.y, v.w), __byte_perm(v.x, v.w, 0x4341),
                    max_fp16x2(v.x, v.z)};
}

/// y[i] = bits of both words of x[i], through shared memory from the thread opposite, and some of
/// their bytes negated.
__global__ void bits_kernel(uint32_t* y, const uint2* x) {
  struct Words {
    uint32_t of[32];
  };
  auto& words = shared<Words>();
  words.of[threadIdx.x] = select_bits(0x0F0F00FFU, x[threadIdx.x].x, x[threadIdx.x].y);
  __syncthreads();
  const uint32_t opposite = load_shared(shared_place(&words.of[1]) + 4 * (30 - threadIdx.x));
  y[31 - threadIdx.x] = permute_bytes(opposite, ~opposite, 0xFFFF2714U);
}

/// y[i] = which halves of x[i]'s first word are greater than those of the second, and which are
/// NaN.
__global__ void compare_kernel(uint2* y, const uint2* x) {
  y[threadIdx.x] = {greater_fp16x2(x[threadIdx.x].x, x[threadIdx.x].y), nan_fp16x2(x[threadIdx.x].x)};
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

TEST(Wrappers, OneTileOfBytes) {
  CudaBackend backend;
  std::vector<uint32_t> a(128), b(64);
  for (size_t i = 0; i < a.size(); ++i) a[i] = 0x9E3779B9U * static_cast<uint32_t>(i + 1);
  for (size_t i = 0; i < b.size(); ++i) b[i] = 0x85EBCA6BU * static_cast<uint32_t>(i + 1);
  const std::vector<int32_t> before(128, 2'147'000'000);  // so that some sums wrap around
  const Buffer<uint32_t> left = on(backend, a), right = on(backend, b);
  Buffer<int32_t> result = on(backend, before);
  launch("byte_tile", {}, {dim3(1), 32}, backend.stream(), byte_tile_kernel, result.data(), left.data(), right.data());
  std::vector<int32_t> d(128);
  backend.copy_to_host(d.data(), result.data(), result.bytes());
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j) {
      auto expected = static_cast<uint32_t>(before[0]);
      for (size_t k = 0; k < 32; ++k) {
        const int x = static_cast<uint8_t>(a[i * 8 + k / 4] >> k % 4 * 8);
        const int y = static_cast<int8_t>(b[j * 8 + k / 4] >> k % 4 * 8);
        expected += static_cast<uint32_t>(x * y);
      }
      EXPECT_EQ(d[i * 8 + j], static_cast<int32_t>(expected)) << i << ", " << j;
    }
}

TEST(Wrappers, ShiftsOfTwoWordsAndSumsOfBytes) {
  CudaBackend backend;
  std::vector<uint2> x(32);
  for (uint32_t i = 0; i < 32; ++i) x[i] = {0x9E3779B9U * (i + 1), 0x85EBCA6BU * (i + 1)};
  const Buffer<uint2> source = on(backend, x);
  Buffer<uint2> result(backend, 32, MemoryCategory::data);
  launch("shift", {}, {dim3(1), 32}, backend.stream(), shift_kernel, result.data(), source.data());
  std::vector<uint2> y(32);
  backend.copy_to_host(y.data(), result.data(), result.bytes());
  for (uint32_t i = 0; i < 32; ++i) {
    EXPECT_EQ(y[i].x, static_cast<uint32_t>((static_cast<uint64_t>(x[i].y) << 32 | x[i].x) >> i)) << i;
    EXPECT_EQ(y[i].y, x[i].y + (x[i].x & 255U) + (x[i].x >> 8 & 255U) + (x[i].x >> 16 & 255U) + (x[i].x >> 24)) << i;
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

TEST(Wrappers, CopiesOfWordsBeginAnywhere) {
  CudaBackend backend;
  std::vector<float> x(129);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  const Buffer<float> source = on(backend, x);
  Buffer<float> result(backend, 128, MemoryCategory::data);
  launch("copy_words", {}, {dim3(1), 32}, backend.stream(), copy_words_kernel, result.data(), source.data());
  std::vector<float> y(128);
  backend.copy_to_host(y.data(), result.data(), result.bytes());
  for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], i % 3 != 0 ? x[i + 1] : 0.0F) << i;
}

TEST(Wrappers, WordsAndPairsOfHalves) {
  CudaBackend backend;
  const auto pair = [](uint32_t even, uint32_t odd) {
    return f32_to_f16(static_cast<float>(even)) | static_cast<uint32_t>(f32_to_f16(static_cast<float>(odd))) << 16;
  };
  std::vector<uint4> x(32);
  for (uint32_t i = 0; i < 32; ++i) x[i] = {pair(i, i % 5), pair(i % 7, 3), pair(2, i), 0x01020304U * i};
  const Buffer<uint4> source = on(backend, x);
  Buffer<uint4> result(backend, 32, MemoryCategory::data);
  launch("words", {}, {dim3(1), 32}, backend.stream(), words_kernel, result.data(), source.data());
  std::vector<uint4> y(32);
  backend.copy_to_host(y.data(), result.data(), result.bytes());
  for (uint32_t i = 0; i < 32; ++i) {
    EXPECT_EQ(y[i].x, pair(i * (i % 7) + 2, i % 5 * 3 + i)) << i;
    EXPECT_EQ(y[i].y, (x[i].x & x[i].y) | x[i].w) << i;
    const uint32_t low = x[i].w & 0xFFU;  // bytes 1 and 3 of the first word, the second one's lowest between them
    EXPECT_EQ(y[i].z, (x[i].x >> 8 & 0xFFU) | low << 8 | (x[i].x >> 24) << 16 | low << 24) << i;
    EXPECT_EQ(y[i].w, pair(std::max(i, 2U), std::max(i % 5, i))) << i;
  }
}

TEST(Wrappers, BitsOfTwoWordsAndPlacesInSharedMemory) {
  CudaBackend backend;
  std::vector<uint2> x(32);
  for (uint32_t i = 0; i < 32; ++i) x[i] = {0x9E3779B9U * i, 0x85EBCA6BU * (i + 1)};
  const Buffer<uint2> source = on(backend, x);
  Buffer<uint32_t> result(backend, 32, MemoryCategory::data);
  launch("bits", {}, {dim3(1), 32}, backend.stream(), bits_kernel, result.data(), source.data());
  std::vector<uint32_t> y(32);
  backend.copy_to_host(y.data(), result.data(), result.bytes());
  for (uint32_t i = 0; i < 32; ++i) {
    const uint32_t bits = (x[i].x & 0x0F0F00FFU) | (x[i].y & 0xF0F0FF00U);
    const auto byte = [](uint32_t word, int at) { return word >> 8 * at & 0xFFU; };
    EXPECT_EQ(y[i], byte(~bits, 0) | byte(bits, 1) << 8 | byte(~bits, 3) << 16 | byte(bits, 2) << 24) << i;
  }
}

TEST(Wrappers, PairsOfHalvesCompare) {
  CudaBackend backend;
  constexpr uint32_t one = 0x3C00, two = 0x4000, minus = 0x8000, nan = 0x7E01, infinity = 0x7C00;
  struct Case {
    uint32_t a, b;
    bool greater, is_nan;
  };
  const std::vector<Case> cases = {
      {two, one, true, false},         {one, two, false, false},     {one, one, false, false},
      {0, minus, false, false},        {minus, 0, false, false},     {1, 0, true, false},
      {one, minus | one, true, false}, {nan, one, false, true},      {one, nan, false, false},
      {nan, nan, false, true},         {infinity, two, true, false}, {infinity, infinity, false, false}};
  std::vector<uint2> x;
  for (const Case& low : cases)
    for (const Case& high : cases) x.push_back({low.a | high.a << 16, low.b | high.b << 16});
  const Buffer<uint2> source = on(backend, x);
  Buffer<uint2> result(backend, x.size(), MemoryCategory::data);
  launch("compare", {}, {dim3(1), static_cast<unsigned>(x.size())}, backend.stream(), compare_kernel, result.data(),
         source.data());
  std::vector<uint2> y(x.size());
  backend.copy_to_host(y.data(), result.data(), result.bytes());
  const auto mask = [](bool low, bool high) { return (low ? 0xFFFFU : 0U) | (high ? 0xFFFF0000U : 0U); };
  for (size_t i = 0; i < y.size(); ++i) {
    const Case &low = cases[i / cases.size()], &high = cases[i % cases.size()];
    EXPECT_EQ(y[i].x, mask(low.greater, high.greater)) << i;
    EXPECT_EQ(y[i].y, mask(low.is_nan, high.is_nan)) << i;
  }
}

TEST(Wrappers, WarpsTransposeMatrices) {
  CudaBackend backend;
  std::vector<f16> x(256);
  for (size_t i = 0; i < x.size(); ++i) x[i].bits = static_cast<uint16_t>(i);
  const Buffer<f16> source = on(backend, x);
  Buffer<uint32_t> result(backend, 128, MemoryCategory::data);
  launch("transposed", {}, {dim3(1), 32}, backend.stream(), transposed_kernel, result.data(), source.data());
  std::vector<uint32_t> y(128);
  backend.copy_to_host(y.data(), result.data(), result.bytes());
  for (uint32_t matrix = 0; matrix < 4; ++matrix)
    for (uint32_t lane = 0; lane < 32; ++lane) {
      const uint32_t first = matrix * 64 + lane % 4 * 16 + lane / 4;
      EXPECT_EQ(y[matrix * 32 + lane], first | (first + 8) << 16);
    }
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
