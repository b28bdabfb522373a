#pragma once

// CUDA for kernels: the toolkit's headers, and small wrappers of PTX instructions. Kernels include
// no other CUDA header. The host-execution build finds its own header at this path first. That one
// runs every thread of a block as a fiber on the CPU, so that sanitizers can check the kernels'
// source.
//
// A kernel may use: threadIdx.x, blockIdx, blockDim.x, gridDim; shared<T>(), dynamic_shared();
// __syncthreads(), __syncwarp(mask), __shfl_sync, __shfl_down_sync, __shfl_xor_sync, __ballot_sync;
// atomicMax on unsigned int and unsigned long long, which orders nothing; __ldcg; __byte_perm; the
// fp16 conversions of cuda_fp16.h; fmaf, expf, logf and similar functions; and the wrappers below.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nibblenet {

/// An object of type T in the block's shared memory, one for each pair of types. Its contents are
/// undefined until written. `Tag` distinguishes two objects of one type.
template <class T, class Tag = T>
__device__ __forceinline__ T& shared() {
  __shared__ alignas(16) unsigned char storage[sizeof(T)];
  return *reinterpret_cast<T*>(storage);
}

/// Dynamic shared memory (Grid::shared_bytes), besides the objects of shared(). 16-byte aligned.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char storage_of_launch[];
  return storage_of_launch;
}

/// Address of a pointer in the shared-memory window, as PTX needs it.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// PDL wait (programmatic dependent launch, Grid::pdl; compute capability 9.0 on): waits until the
/// kernel before has ended and its writes are visible. Before it, a kernel may read weights, and
/// may write nothing. That is safe: after weights change (Weight::changed()), a copy or a kernel
/// without PDL brings the next batch, and starts only after all earlier work.
__device__ __forceinline__ void pdl_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
/// PDL trigger: lets the next kernel, if it is launched by PDL, start on free multiprocessors.
__device__ __forceinline__ void pdl_trigger() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

/// Whether this code is for compute capability 9.0 on, as Stream::compiled_for() says on the host.
__device__ __forceinline__ constexpr bool compiled_for_90() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}

// Thread block clusters (Grid::cluster; compute capability 9.0 on, PTX ISA, barrier.cluster, mapa).
// Blocks of a cluster run at once and read each other's shared memory. Kernels call these only
// where compiled_for_90() is true.

/// The block's number in its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
#endif
  return rank;
}
/// The two halves of a barrier of all threads in a cluster. What a thread wrote before it arrives
/// is visible to all who have waited. No block may end before the others have read its shared
/// memory.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
#endif
}
/// Arrives without publishing what the thread wrote, for a barrier that only keeps shared memory
/// alive: it needs no fence of the whole GPU.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
#endif
}
/// Loads 16 aligned bytes from shared memory of block `rank` of the cluster, from the place that
/// `own` is in this block's.
__device__ __forceinline__ float4 load_cluster_16([[maybe_unused]] const float4* own, [[maybe_unused]] unsigned rank) {
  float4 v{};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 place;\nmapa.shared::cluster.u32 place, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [place];\n}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_address(own)), "r"(rank)
      : "memory");
#endif
  return v;
}

/// A shared-memory address as a number. The compiler keeps additions to it as they are.
using SharedPlace = unsigned;
__device__ __forceinline__ SharedPlace shared_place(const void* pointer) { return shared_address(pointer); }
/// Loads the word at `place`. Volatile: the load does not move before the last barrier.
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

/// d[16, 8] += a[16, 32] b[32, 8] by one warp, in integers that wrap around: unsigned bytes times
/// signed ones (PTX ISA, mma.m16n8k32). With g = lane / 4 and t = lane % 4, four bytes a register,
/// the first one lowest:
///   a: rows g, g + 8, g, g + 8 of columns 4t, 4t, 4t + 16, 4t + 16 and the three behind each
///   b: column g of rows 4t and 4t + 16 and the three below each
///   d: as of mma_16816
__device__ __forceinline__ void mma_16832(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// ldmatrix: loads four 8x8 matrices of fp16 values from shared memory. Lane 8 i + j points at row
/// j of matrix i, 16 aligned bytes. r[i] of lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of
/// row l / 4 of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// ldmatrix with transposition: r[i] of lane l holds element l / 4 of rows 2 (l % 4) and 2 (l % 4)
/// + 1.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// (a & b) | c in one instruction. The compiler alone uses two where b and c are constants.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// Bits of a where `mask` is 1, else bits of b, in one instruction. Written in PTX because the
/// compiler would move later masks before it and repeat the work for each use.
__device__ __forceinline__ uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(d) : "r"(mask), "r"(a), "r"(b));
  return d;
}

/// The lower 32 bits of high:low shifted right by `by`, from 0 to 31. Written in PTX because the
/// compiler would make other shifts of it and share less.
__device__ __forceinline__ uint32_t shift_right_double(uint32_t low, uint32_t high, int by) {
  uint32_t d;
  asm("shf.r.wrap.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(high), "r"(by));
  return d;
}

/// The sum of the four bytes of `bytes`, plus `summand`.
__device__ __forceinline__ uint32_t add_bytes(uint32_t bytes, uint32_t summand) {
  return __dp4a(bytes, 0x01010101U, summand);
}

/// __byte_perm for selectors below 8. __byte_perm itself clears the selectors' highest bits first.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t digits) {
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(digits));
  return d;
}

/// a b + c for two fp16 values each, rounded once.
__device__ __forceinline__ uint32_t fma_fp16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// max(a, b) for two fp16 values each; NaN where either is NaN.
__device__ __forceinline__ uint32_t max_fp16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

/// All ones in each half where a > b, else zeros; zeros for NaN.
__device__ __forceinline__ uint32_t greater_fp16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

/// All ones in each half that is NaN, else zeros.
__device__ __forceinline__ uint32_t nan_fp16x2(uint32_t a) {
  uint32_t d;
  asm("set.nan.u32.f16x2 %0, %1, %1;" : "=r"(d) : "r"(a));
  return d;
}

/// Loads 16 aligned bytes that are read once, bypassing the L1 cache. The load stays behind a PDL
/// wait before it. ld.global.nc would not: the assembler takes its bytes for constant.
__device__ __forceinline__ uint4 load_once_16(const void* source) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(source)
               : "memory");
  return v;
}

/// Adds to a word in global memory, and returns its value before. Releases and acquires in the
/// whole GPU: behind a barrier it publishes what the block wrote; in front of a barrier the block
/// sees what others published through this word.
__device__ __forceinline__ unsigned atomic_add_acq_rel(unsigned* target, unsigned value) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(target), "r"(value) : "memory");
  return before;
}

/// cp.async: starts copying 16 aligned bytes from global to shared memory. Writes zeros, and does
/// not read `source`, where `valid` is false. The copy has landed after cp_async_wait, and after a
/// barrier for the other threads.
__device__ __forceinline__ void cp_async_16(void* target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}
/// cp.async through the L1 cache, for bytes that this multiprocessor reads again soon.
__device__ __forceinline__ void cp_async_16_cached(void* target, const void* source, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}
/// cp.async of 4 aligned bytes.
__device__ __forceinline__ void cp_async_4(void* target, const void* source, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(target)), "l"(source),
               "r"(valid ? 4 : 0)
               : "memory");
}
/// Closes the group of the copies started since the last group.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/// Waits until at most the latest `Pending` of this thread's groups are in flight.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

}  // namespace nibblenet

#include "kernels/cuda/device/wgmma_ptx.cuh"
