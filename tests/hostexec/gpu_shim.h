#pragma once

// The interface of kernels/cuda/device/gpu.h on the CPU: see scheduler.h.

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "engine/core/half.h"
#include "tests/hostexec/fake_runtime.h"
#include "tests/hostexec/scheduler.h"

#define threadIdx (::nibblenet::hostexec::state.thread_index)
#define blockIdx (::nibblenet::hostexec::state.block_index)
#define blockDim (::nibblenet::hostexec::state.block_dimensions)
#define gridDim (::nibblenet::hostexec::state.grid_dimensions)

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __maxnreg__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __maxnreg__(...)

namespace nibblenet::hostexec {

template <class T>
struct ShuffleSlot {
  T value;
  unsigned source;  ///< lane
  T result;
  const std::source_location* where;
};

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* what, std::source_location where) {
  ShuffleSlot<T> slot{value, source, value, &where};
  warp_collective(mask, what, where, &slot, [](void* const* slots, unsigned lanes) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((lanes >> lane & 1U) == 0) continue;
      auto& own = *static_cast<ShuffleSlot<T>*>(slots[lane]);
      if (slots[own.source] == nullptr) fail_here("a shuffle reads a lane outside its mask", *own.where);
      own.result = static_cast<ShuffleSlot<T>*>(slots[own.source])->value;
    }
  });
  return slot.result;
}

inline unsigned lane_index() { return threadIdx.x % 32; }

struct BallotSlot {
  bool predicate;
  unsigned result;
};

struct MmaSlot {
  float (*d)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
};

struct LdmatrixSlot {
  uint32_t (*r)[4];
  const void* row;
};

/// fp16 values as floats, by their bits.
inline const float* half_values() {
  static const std::vector<float> values = [] {
    std::vector<float> table(1 << 16);
    for (uint32_t bits = 0; bits < table.size(); ++bits) table[bits] = f16_to_f32(static_cast<uint16_t>(bits));
    return table;
  }();
  return values.data();
}

inline void multiply_fragments(void* const* slots, unsigned) {
  const float* value = half_values();
  float a[16][16];
  float b[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& slot = *static_cast<const MmaSlot*>(slots[lane]);
    const unsigned g = lane / 4, t = lane % 4 * 2;
    for (unsigned i = 0; i < 4; ++i) {
      a[g + i % 2 * 8][t + i / 2 * 8] = value[(*slot.a)[i] & 0xFFFF];
      a[g + i % 2 * 8][t + i / 2 * 8 + 1] = value[(*slot.a)[i] >> 16];
    }
    for (unsigned i = 0; i < 2; ++i) {
      b[t + i * 8][g] = value[(*slot.b)[i] & 0xFFFF];
      b[t + i * 8 + 1][g] = value[(*slot.b)[i] >> 16];
    }
  }
  float sum[16][8] = {};
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned k = 0; k < 16; ++k)
      for (unsigned j = 0; j < 8; ++j) sum[i][j] += a[i][k] * b[k][j];
  for (unsigned lane = 0; lane < 32; ++lane) {
    float(&d)[4] = *static_cast<MmaSlot*>(slots[lane])->d;
    for (unsigned e = 0; e < 4; ++e) d[e] += sum[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
  }
}

struct ByteMmaSlot {
  int32_t (*d)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
};

inline void multiply_byte_fragments(void* const* slots, unsigned) {
  int a[16][32];
  int b[32][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& slot = *static_cast<const ByteMmaSlot*>(slots[lane]);
    const unsigned g = lane / 4, t = lane % 4 * 4;
    for (unsigned e = 0; e < 4; ++e) {
      for (unsigned i = 0; i < 4; ++i)
        a[g + i % 2 * 8][t + i / 2 * 16 + e] = static_cast<uint8_t>((*slot.a)[i] >> 8 * e);
      for (unsigned i = 0; i < 2; ++i) b[t + i * 16 + e][g] = static_cast<int8_t>((*slot.b)[i] >> 8 * e);
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    int32_t(&d)[4] = *static_cast<ByteMmaSlot*>(slots[lane])->d;
    for (unsigned e = 0; e < 4; ++e) {
      auto sum = static_cast<uint32_t>(d[e]);
      for (unsigned k = 0; k < 32; ++k)
        sum += static_cast<uint32_t>(a[lane / 4 + e / 2 * 8][k] * b[k][lane % 4 * 2 + e % 2]);
      d[e] = static_cast<int32_t>(sum);
    }
  }
}

inline void load_matrices(void* const* slots, unsigned) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const auto* row = static_cast<const char*>(static_cast<const LdmatrixSlot*>(slots[8 * i + lane / 4])->row);
      std::memcpy(&(*static_cast<LdmatrixSlot*>(slots[lane])->r)[i], row + lane % 4 * 4, 4);
    }
  }
}

inline void load_transposed_matrices(void* const* slots, unsigned) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      uint32_t pair = 0;
      for (unsigned e = 0; e < 2; ++e) {
        const auto* row =
            static_cast<const char*>(static_cast<const LdmatrixSlot*>(slots[8 * i + lane % 4 * 2 + e])->row);
        uint16_t half = 0;
        std::memcpy(&half, row + lane / 4 * sizeof(half), sizeof(half));
        pair |= uint32_t{half} << 16 * e;
      }
      (*static_cast<LdmatrixSlot*>(slots[lane])->r)[i] = pair;
    }
  }
}

inline void land(const PendingCopy& copy) {
  if (copy.source != nullptr)
    std::memcpy(copy.target, copy.source, copy.bytes);
  else
    std::memset(copy.target, 0, copy.bytes);
}

inline void expect_aligned(const void* pointer, const char* what, std::source_location where, size_t bytes = 16) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail_here(what, where);
}

inline void start_copy(const PendingCopy& copy) {
  if (!schedule().late_copies) land(copy);
  state.copies->open.push_back(copy);
}

}  // namespace nibblenet::hostexec

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  nibblenet::hostexec::block_barrier(where);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFU, std::source_location where = std::source_location::current()) {
  nibblenet::hostexec::warp_collective(mask, "__syncwarp", where, nullptr, nullptr);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, std::source_location where = std::source_location::current()) {
  using namespace nibblenet::hostexec;
  return shuffle(mask, value, static_cast<unsigned>(lane) % 32, "__shfl_sync", where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, std::source_location where = std::source_location::current()) {
  using namespace nibblenet::hostexec;
  return shuffle(mask, value, (lane_index() ^ static_cast<unsigned>(distance)) % 32, "__shfl_xor_sync", where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta,
                   std::source_location where = std::source_location::current()) {
  using namespace nibblenet::hostexec;
  const unsigned lane = lane_index();
  return shuffle(mask, value, lane + delta < 32 ? lane + delta : lane, "__shfl_down_sync", where);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              std::source_location where = std::source_location::current()) {
  using namespace nibblenet::hostexec;
  BallotSlot slot{predicate, 0};
  warp_collective(mask, "__ballot_sync", where, &slot, [](void* const* slots, unsigned lanes) {
    unsigned result = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
      if ((lanes >> lane & 1U) != 0 && static_cast<BallotSlot*>(slots[lane])->predicate) result |= 1U << lane;
    for (unsigned lane = 0; lane < 32; ++lane)
      if ((lanes >> lane & 1U) != 0) static_cast<BallotSlot*>(slots[lane])->result = result;
  });
  return slot.result;
}

template <class T>
T atomicMax(T* target, T value) {
  const std::atomic_ref<T> atomic(*target);
  T old = atomic.load(std::memory_order_relaxed);
  while (old < value && !atomic.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
  return old;
}

template <class T>
T __ldcg(const T* source) {
  return *source;
}

inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7U) * 8 & 0xFFU) << 8 * i;
  return result;
}

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

namespace nibblenet {

using std::isnan;

template <class T, class Tag = T>
T& shared() {
  static const char key = 0;
  return *static_cast<T*>(hostexec::shared_object(&key, sizeof(T)));
}

inline unsigned char* dynamic_shared(std::source_location where = std::source_location::current()) {
  static const char key = 0;
  if (hostexec::state.shared_bytes == 0) hostexec::fail_here("dynamic_shared of a launch without any", where);
  return static_cast<unsigned char*>(hostexec::shared_object(&key, hostexec::state.shared_bytes));
}

/// Kernels run one after the other here.
inline void pdl_wait() {}
inline void pdl_trigger() {}

inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      std::source_location where = std::source_location::current()) {
  hostexec::MmaSlot slot{&d, &a, &b};
  hostexec::warp_collective(0xFFFFFFFFU, "mma_16816", where, &slot, hostexec::multiply_fragments);
}

inline void mma_16832(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      std::source_location where = std::source_location::current()) {
  hostexec::ByteMmaSlot slot{&d, &a, &b};
  hostexec::warp_collective(0xFFFFFFFFU, "mma_16832", where, &slot, hostexec::multiply_byte_fragments);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row,
                        std::source_location where = std::source_location::current()) {
  hostexec::expect_aligned(row, "ldmatrix_x4 of a row that is not 16-byte aligned", where);
  hostexec::LdmatrixSlot slot{&r, row};
  hostexec::warp_collective(0xFFFFFFFFU, "ldmatrix_x4", where, &slot, hostexec::load_matrices);
}

inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row,
                                   std::source_location where = std::source_location::current()) {
  hostexec::expect_aligned(row, "ldmatrix_x4_transposed of a row that is not 16-byte aligned", where);
  hostexec::LdmatrixSlot slot{&r, row};
  hostexec::warp_collective(0xFFFFFFFFU, "ldmatrix_x4_transposed", where, &slot, hostexec::load_transposed_matrices);
}

inline unsigned cluster_rank() { return blockIdx.z % hostexec::state.cluster; }
inline void cluster_arrive(std::source_location where = std::source_location::current()) {
  hostexec::arrive_in_cluster(true, where);
}
inline void cluster_arrive_relaxed(std::source_location where = std::source_location::current()) {
  hostexec::arrive_in_cluster(false, where);
}
inline void cluster_wait(std::source_location where = std::source_location::current()) {
  hostexec::wait_for_cluster(where);
}
inline float4 load_cluster_16(const float4* own, unsigned rank,
                              std::source_location where = std::source_location::current()) {
  hostexec::expect_aligned(own, "load_cluster_16 from a place that is not 16-byte aligned", where);
  return *static_cast<const float4*>(hostexec::in_cluster(own, rank, where));
}

inline bool compiled_for_90() { return hostexec::compiled_for() >= 90; }

using SharedPlace = uintptr_t;
inline SharedPlace shared_place(const void* pointer) { return reinterpret_cast<SharedPlace>(pointer); }
inline uint32_t load_shared(SharedPlace place) { return *reinterpret_cast<const uint32_t*>(place); }

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }

inline uint32_t shift_right_double(uint32_t low, uint32_t high, int by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (by & 31));
}

inline uint32_t add_bytes(uint32_t bytes, uint32_t summand) {
  return summand + (bytes & 255U) + (bytes >> 8 & 255U) + (bytes >> 16 & 255U) + (bytes >> 24);
}

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t digits,
                              std::source_location where = std::source_location::current()) {
  if ((digits & 0x8888U) != 0) hostexec::fail_here("permute_bytes by a digit above 7", where);
  return __byte_perm(a, b, digits);
}

inline uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) { return (a & mask) | (b & ~mask); }

inline uint32_t fma_fp16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d = 0;
  for (int half = 0; half < 2; ++half) {
    const auto value = [half](uint32_t bits) {
      return static_cast<double>(hostexec::half_values()[bits >> 16 * half & 0xFFFFU]);
    };
    // The product is exact in double, and so is every sum that float32 can then round to fp16
    // without a second error.
    const auto sum = static_cast<float>(value(a) * value(b) + value(c));
    d |= static_cast<uint32_t>(f32_to_f16(sum)) << 16 * half;
  }
  return d;
}

inline uint32_t max_fp16x2(uint32_t a, uint32_t b) {
  uint32_t d = 0;
  for (int half = 0; half < 2; ++half) {
    const uint32_t one = a >> 16 * half & 0xFFFFU, other = b >> 16 * half & 0xFFFFU;
    const float x = hostexec::half_values()[one], y = hostexec::half_values()[other];
    const uint32_t larger = std::isnan(x) || std::isnan(y) ? 0x7FFFU : x < y ? other : one;
    d |= larger << 16 * half;
  }
  return d;
}

inline uint32_t greater_fp16x2(uint32_t a, uint32_t b) {
  const float* value = hostexec::half_values();
  return (value[a & 0xFFFFU] > value[b & 0xFFFFU] ? 0xFFFFU : 0U) |
         (value[a >> 16] > value[b >> 16] ? 0xFFFF0000U : 0U);
}
inline uint32_t nan_fp16x2(uint32_t a) {
  const float* value = hostexec::half_values();
  return (std::isnan(value[a & 0xFFFFU]) ? 0xFFFFU : 0U) | (std::isnan(value[a >> 16]) ? 0xFFFF0000U : 0U);
}

inline uint4 load_once_16(const void* source, std::source_location where = std::source_location::current()) {
  hostexec::expect_aligned(source, "load_once_16 from a place that is not 16-byte aligned", where);
  uint4 value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

inline unsigned atomic_add_acq_rel(unsigned* target, unsigned value) {
  return std::atomic_ref(*target).fetch_add(value, std::memory_order_acq_rel);
}

inline void cp_async_16(void* target, const void* source, bool valid,
                        std::source_location where = std::source_location::current()) {
  hostexec::expect_aligned(target, "cp_async_16 to a place that is not 16-byte aligned", where);
  hostexec::expect_aligned(source, "cp_async_16 from a place that is not 16-byte aligned", where);
  hostexec::start_copy({target, valid ? source : nullptr, 16});
}
inline void cp_async_4(void* target, const void* source, bool valid,
                       std::source_location where = std::source_location::current()) {
  hostexec::expect_aligned(target, "cp_async_4 to a place that is not 4-byte aligned", where, 4);
  hostexec::expect_aligned(source, "cp_async_4 from a place that is not 4-byte aligned", where, 4);
  hostexec::start_copy({target, valid ? source : nullptr, 4});
}
inline void cp_async_16_cached(void* target, const void* source, bool valid,
                               std::source_location where = std::source_location::current()) {
  cp_async_16(target, source, valid, where);
}
inline void cp_async_commit() {
  auto& copies = *hostexec::state.copies;
  copies.closed.push_back(std::move(copies.open));
  copies.open.clear();
}
template <int Pending>
void cp_async_wait() {
  auto& closed = hostexec::state.copies->closed;
  while (closed.size() > static_cast<size_t>(Pending)) {
    if (hostexec::schedule().late_copies)
      for (const hostexec::PendingCopy& copy : closed.front()) hostexec::land(copy);
    closed.erase(closed.begin());
  }
}

}  // namespace nibblenet

#include "tests/hostexec/wgmma_shim.h"
