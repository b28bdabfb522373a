#pragma once

// wgmma: asynchronous matrix products of a warpgroup (PTX ISA), for compute capability 9.0. Part of
// kernels/cuda/device/gpu.h; do not include it elsewhere.

namespace nibblenet {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
namespace warpgroup {

// A thread's sums from d[i] on, as read-write operands of the instruction.
#define NIBBLENET_4_SUMS(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define NIBBLENET_16_SUMS(i) \
  NIBBLENET_4_SUMS(i), NIBBLENET_4_SUMS(i + 1), NIBBLENET_4_SUMS(i + 2), NIBBLENET_4_SUMS(i + 3)

template <bool a_along_k, bool b_along_k>
__device__ __forceinline__ void multiply(float (&d)[8][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, %34, %35;}\n"
      : NIBBLENET_16_SUMS(0), NIBBLENET_16_SUMS(4)
      : "l"(a), "l"(b), "n"(a_along_k ? 0 : 1), "n"(b_along_k ? 0 : 1));
}

template <bool a_along_k, bool b_along_k>
__device__ __forceinline__ void multiply(float (&d)[12][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
      "}, %48, %49, p, 1, 1, %50, %51;}\n"
      : NIBBLENET_16_SUMS(0), NIBBLENET_16_SUMS(4), NIBBLENET_16_SUMS(8)
      : "l"(a), "l"(b), "n"(a_along_k ? 0 : 1), "n"(b_along_k ? 0 : 1));
}

template <bool a_along_k, bool b_along_k>
__device__ __forceinline__ void multiply(float (&d)[16][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, %66, %67;}\n"
      : NIBBLENET_16_SUMS(0), NIBBLENET_16_SUMS(4), NIBBLENET_16_SUMS(8), NIBBLENET_16_SUMS(12)
      : "l"(a), "l"(b), "n"(a_along_k ? 0 : 1), "n"(b_along_k ? 0 : 1));
}

#undef NIBBLENET_16_SUMS
#undef NIBBLENET_4_SUMS

/// Matrix descriptor of a tile in shared memory: its address, the distance between blocks of 64
/// rows, the distance between groups of eight rows, and the 128-byte swizzle. Distances count 16
/// bytes.
__device__ __forceinline__ uint64_t describe(const void* tile) {
  constexpr uint64_t blocks = uint64_t{8192 / 16} << 16;
  constexpr uint64_t groups = uint64_t{1024 / 16} << 32;
  constexpr uint64_t swizzle = uint64_t{1} << 62;
  return (shared_address(tile) & 0x3FFFFU) >> 4 | blocks | groups | swizzle;
}

}  // namespace warpgroup
#endif

/// d[64, 8 columns] += a[64, 16] b[columns, 16] by a warpgroup of 128 threads: fp16 values in
/// shared memory, float32 sums. Multiplies step `step` of 16 of the k-tile. `a` and `b` are tiles
/// of 64 of k, 1,024-byte aligned, in one of two layouts:
///   along k: [rows][64 of k], with at least eight rows
///   along rows: [blocks of 64 rows][64 of k][64 rows], 8,192 bytes a block
/// Each line of 128 bytes is swizzled: 16-byte vector p of line l lies at p ^ (l % 8). Thread t has
/// d[i][2 h + e] of row 16 (t / 32) + 8 h + t % 32 / 4 and column 8 i + t % 4 * 2 + e. The product
/// is asynchronous: until wgmma_wait, neither d nor the tiles may be touched.
template <bool a_along_k, bool b_along_k, int columns>
__device__ __forceinline__ void wgmma_async(float (&d)[columns][4], const unsigned char* a, const unsigned char* b,
                                            int step) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  warpgroup::multiply<a_along_k, b_along_k>(d, warpgroup::describe(a + step * (a_along_k ? 32 : 2048)),
                                            warpgroup::describe(b + step * (b_along_k ? 32 : 2048)));
#else
  __trap();
#endif
}

/// Must precede the first product of a group: makes the threads' writes to d visible.
template <int columns>
__device__ __forceinline__ void wgmma_fence(float (&d)[columns][4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#pragma unroll
  for (int i = 0; i < columns; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[i][e])::"memory");
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}

/// Closes a group of products.
__device__ __forceinline__ void wgmma_commit() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}

/// Waits for all groups of products.
template <int columns>
__device__ __forceinline__ void wgmma_wait(float (&d)[columns][4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
#pragma unroll
  for (int i = 0; i < columns; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[i][e])::"memory");
#endif
}

/// Makes this thread's writes to shared memory, and its landed copies, visible to products after
/// the next barrier.
__device__ __forceinline__ void show_to_wgmma() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

}  // namespace nibblenet
