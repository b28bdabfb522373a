#pragma once

// The one header through which kernels see CUDA: CUDA itself and the few wrappers below. A build of
// the kernels for the CPU finds another header of this path first, which runs every thread of a
// block as a fiber, so that tests can watch the kernels' own source with sanitizers.
//
// What a kernel may use: threadIdx.x, blockIdx, blockDim.x, gridDim; shared<T>(), dynamic_shared();
// __syncthreads(), __syncwarp(mask), __shfl_sync, __shfl_down_sync, __shfl_xor_sync, __ballot_sync;
// atomicMax on unsigned int and unsigned long long, atomicAdd on unsigned int, __threadfence(),
// __ldcg; __byte_perm; the fp16 conversions of cuda_fp16.h; fmaf, expf, logf and their like; and
// the wrappers below.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nibblenet {

/// Shared memory of the block: one object for each pair of types. Contents are undefined until
/// written. `Tag` tells apart two objects of one type.
template <class T, class Tag = T>
__device__ __forceinline__ T& shared() {
  __shared__ alignas(16) unsigned char storage[sizeof(T)];
  return *reinterpret_cast<T*>(storage);
}

/// Shared memory of the launch's size (Grid::shared_bytes), beside the objects of shared(): 16-byte
/// aligned.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char storage_of_launch[];
  return storage_of_launch;
}

/// Address of a generic pointer inside the shared window, as PTX wants it.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// Of kernels that are launched by PDL (programmatic dependent launch) (Grid::pdl), from compute
/// capability 9.0 on: waits until the kernel before has ended and what it wrote is seen. Weights
/// may be read before, nothing written: whatever changes weights is followed by what brings the
/// next batch, a copy or a kernel that is not launched by PDL and so begins behind all that went
/// before.
__device__ __forceinline__ void pdl_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
/// This block no longer keeps the next kernel, if launched by PDL, from being given
/// multiprocessors.
__device__ __forceinline__ void pdl_trigger() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

/// A place in shared memory as a number: what is added to it is not taken apart by the compiler.
using SharedPlace = unsigned;
__device__ __forceinline__ SharedPlace shared_place(const void* pointer) { return shared_address(pointer); }
/// The word there, not before the last barrier.
__device__ __forceinline__ uint32_t load_shared(SharedPlace place) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(word) : "r"(place));
  return word;
}

/// d[16, 8] += a[16, 16] b[16, 8] by one warp: fp16 operands, float32 sums (PTX ISA, mma.m16n8k16).
/// With g = lane / 4 and t = lane % 4, two fp16 values a register, the lower one first:
///   a: rows g, g + 8, g, g + 8 of columns 2t, 2t, 2t + 8, 2t + 8
///   b: column g of rows 2t, 2t + 8
///   d: row g, columns 2t and 2t + 1, then row g + 8
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four 8x8 matrices of fp16 values from shared memory: lane 8 i + j points at row j of matrix i,
/// 16 aligned bytes; r[i] of lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of
/// matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// The same of transposed matrices: r[i] of lane l holds elements l / 4 of rows 2 (l % 4) and 2 (l
/// % 4) + 1.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// (a & b) | c in one instruction: left alone, the compiler takes two where b and c are constants.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// The bits of a where those of `mask` are set, else of b. In one instruction that stays as it is:
/// left alone, the compiler moves masks of what follows in front of it, and takes each use apart
/// anew.
__device__ __forceinline__ uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(d) : "r"(mask), "r"(a), "r"(b));
  return d;
}

/// __byte_perm for digits that are known to be below 8: it clears their highest bits itself.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t digits) {
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(digits));
  return d;
}

/// a b + c of two fp16 values each, rounded once.
__device__ __forceinline__ uint32_t fma_fp16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// The larger ones of two fp16 values each; NaN where either is.
__device__ __forceinline__ uint32_t max_fp16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

/// All ones in each half of two where a > b, else zeros: of a NaN as well.
__device__ __forceinline__ uint32_t greater_fp16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

/// All ones in each half of two that is NaN, else zeros.
__device__ __forceinline__ uint32_t nan_fp16x2(uint32_t a) {
  uint32_t d;
  asm("set.nan.u32.f16x2 %0, %1, %1;" : "=r"(d) : "r"(a));
  return d;
}

/// 16 aligned bytes that no kernel writes while this one runs and that are read once: they leave
/// the L1 cache to others.
__device__ __forceinline__ uint4 load_once_16(const void* source) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(source));
  return v;
}

/// Starts copying 16 aligned bytes from global to shared memory; zeros where `valid` is false, and
/// then `source` is not read. Landed after cp_async_wait, and a barrier for the other threads.
__device__ __forceinline__ void cp_async_16(void* target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}
/// The same of bytes that this multiprocessor reads again soon: they pass through its L1 cache.
__device__ __forceinline__ void cp_async_16_cached(void* target, const void* source, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}
/// The same of 4 aligned bytes.
__device__ __forceinline__ void cp_async_4(void* target, const void* source, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(target)), "l"(source),
               "r"(valid ? 4 : 0)
               : "memory");
}
/// Closes a group of the copies started since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/// Waits until at most `Pending` of this thread's groups, the latest ones, are under way.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

}  // namespace nibblenet

#include "kernels/cuda/device/wgmma_ptx.cuh"
