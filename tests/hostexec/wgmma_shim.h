#pragma once

// The interface of kernels/cuda/device/wgmma_ptx.cuh on the CPU: each thread computes its own sums
// from the tiles, without delay. Part of gpu_shim.h.

namespace nibblenet {
namespace hostexec {

/// Row `row` of a tile at element `k`.
template <bool along_k>
float element_of_tile(const unsigned char* tile, int row, int k) {
  const int line = along_k ? row : k;
  const int within = along_k ? k : row % 64;
  const int block = along_k ? 0 : row / 64;
  uint16_t half = 0;
  std::memcpy(&half, tile + block * 8192 + line * 128 + ((within / 8 ^ line % 8) << 4) + within % 8 * 2, sizeof(half));
  return half_values()[half];
}

}  // namespace hostexec

template <bool a_along_k, bool b_along_k, int columns>
void wgmma_async(float (&d)[columns][4], const unsigned char* a, const unsigned char* b, int step,
                 std::source_location where = std::source_location::current()) {
  if (reinterpret_cast<uintptr_t>(a) % 1024 != 0 || reinterpret_cast<uintptr_t>(b) % 1024 != 0)
    hostexec::fail_here("wgmma_async of a tile that is not 1,024-byte aligned", where);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  float of_a[2][16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k)
      of_a[half][k] =
          hostexec::element_of_tile<a_along_k>(a, thread / 32 * 16 + 8 * half + thread % 32 / 4, 16 * step + k);
  for (int i = 0; i < columns; ++i)
    for (int e = 0; e < 2; ++e) {
      float of_b[16];
      for (int k = 0; k < 16; ++k)
        of_b[k] = hostexec::element_of_tile<b_along_k>(b, 8 * i + thread % 4 * 2 + e, 16 * step + k);
      for (int half = 0; half < 2; ++half) {
        float sum = 0.0F;
        for (int k = 0; k < 16; ++k) sum += of_a[half][k] * of_b[k];
        d[i][2 * half + e] += sum;
      }
    }
}
template <int columns>
void wgmma_fence(float (&)[columns][4]) {}
inline void wgmma_commit() {}
template <int columns>
void wgmma_wait(float (&)[columns][4]) {}
inline void show_to_wgmma() {}

}  // namespace nibblenet
