#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/device/gpu.h"
#include "kernels/cuda/gemm/split_k.cuh"
#include "tests/hostexec/fake_runtime.h"
#include "tests/hostexec/scheduler.h"

// The harness itself: correct kernels give the same bits in every schedule, and each planted bug is
// caught.

#if defined(__SANITIZE_THREAD__)
/// ThreadSanitizer must end the program at a race: death tests expect that.
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }
#endif

namespace nibblenet::hostexec {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Order = Schedule::Order;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool has_address_sanitizer = true;
#else
constexpr bool has_address_sanitizer = false;
#endif
#if defined(__SANITIZE_THREAD__)
constexpr bool has_thread_sanitizer = true;
#else
constexpr bool has_thread_sanitizer = false;
#endif

constexpr unsigned everyone = 0xFFFFFFFFU;
constexpr std::array<Schedule, 6> schedules = {{{Order::forward, 0, false},
                                                {Order::reverse, 0, false},
                                                {Order::random, 5, false},
                                                {Order::forward, 0, true},
                                                {Order::reverse, 0, true},
                                                {Order::random, 6, true}}};

/// Runs a grid and returns the message it is refused with, or "".
std::string refusal(dim3 blocks, unsigned threads, std::function<void()> body, unsigned cluster = 1) {
  try {
    run_grid("planted", blocks, threads, std::move(body), 0, cluster);
  } catch (const HostExecutionError& error) {
    return error.what();
  }
  return "";
}

class Harness : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  void TearDown() override { set_schedule({}); }
};

int thread() { return static_cast<int>(threadIdx.x); }
int block() { return static_cast<int>(blockIdx.x); }

// Correct kernels

/// y[block] = sum of the block's 128 elements of x.
void sum_kernel(float* y, const float* x) {
  struct Partial {
    float of_warp[4];
  };
  auto& partial = shared<Partial>();
  float value = x[block() * 128 + thread()];
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(everyone, value, distance);
  if (thread() % 32 == 0) partial.of_warp[thread() / 32] = value;
  __syncthreads();
  if (thread() == 0) y[block()] = partial.of_warp[0] + partial.of_warp[1] + partial.of_warp[2] + partial.of_warp[3];
}

TEST_F(Harness, BlocksReduce) {
  std::vector<float> x(3 * 128);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17);
  std::vector<float> expected(3, 0.0F);
  for (size_t i = 0; i < x.size(); ++i) expected[i / 128] += x[i];
  for (const Schedule& each : schedules) {
    set_schedule(each);
    std::vector<float> y(3);
    run_grid("sum", dim3(3), 128, [&] { sum_kernel(y.data(), x.data()); });
    EXPECT_EQ(y, expected);
  }
}

/// y[column] = sum over a cluster of 3 blocks of 64 of their (block + 1) * thread, each block a
/// share of the columns. The flags leave a barrier out.
void cluster_sum_kernel(float* y, bool publish, bool stay) {
  struct Row {
    alignas(16) float of[64];
  };
  auto& row = shared<Row>();
  row.of[thread()] = static_cast<float>((blockIdx.z + 1) * threadIdx.x);
  if (publish)
    cluster_arrive();
  else
    cluster_arrive_relaxed();
  cluster_wait();
  for (int four = thread(); four < 16; four += 64) {
    if (four % 3 != static_cast<int>(cluster_rank())) continue;
    for (unsigned rank = 0; rank < 3; ++rank) {
      const float4 part = load_cluster_16(reinterpret_cast<const float4*>(row.of) + four, rank);
      float* to = y + (block() * 16 + four) * 4;
      to[0] += part.x;
      to[1] += part.y;
      to[2] += part.z;
      to[3] += part.w;
    }
  }
  if (!stay) return;
  cluster_arrive_relaxed();
  cluster_wait();
}

TEST_F(Harness, ClustersReduce) {
  for (const Schedule& each : schedules) {
    set_schedule(each);
    std::vector<float> y(2 * 64);
    run_grid(
        "cluster sum", dim3(2, 1, 3), 64, [&] { cluster_sum_kernel(y.data(), true, true); }, 0, 3);
    for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], static_cast<float>(6 * (i % 64)));
  }
}

TEST_F(Harness, BallotsTellWhoVotes) {
  std::vector<unsigned> votes(64);
  run_grid("ballot", dim3(1), 64,
           [&] { votes[static_cast<size_t>(thread())] = __ballot_sync(everyone, thread() % 3 == 0); });
  for (unsigned warp = 0; warp < 2; ++warp) {
    unsigned expected = 0;
    for (unsigned lane = 0; lane < 32; ++lane) expected |= (warp * 32 + lane) % 3 == 0 ? 1U << lane : 0U;
    for (unsigned lane = 0; lane < 32; ++lane) EXPECT_EQ(votes[warp * 32 + lane], expected);
  }
}

/// y[4, 32] = the registers of four transposed matrices [4, 8, 8].
void transposed_kernel(uint32_t* y, const f16* x) {
  struct Matrices {
    alignas(16) f16 rows[32][8];
  };
  auto& matrices = shared<Matrices>();
  const int lane = thread();
  for (int e = 0; e < 8; ++e) matrices.rows[lane][e] = x[lane * 8 + e];
  __syncthreads();
  uint32_t r[4];
  ldmatrix_x4_transposed(r, &matrices.rows[lane]);
  for (int i = 0; i < 4; ++i) y[i * 32 + lane] = r[i];
}

TEST_F(Harness, WarpsTransposeMatrices) {
  std::vector<f16> x(256);
  for (size_t i = 0; i < x.size(); ++i) x[i].bits = static_cast<uint16_t>(i);
  for (const Schedule& each : schedules) {
    set_schedule(each);
    std::vector<uint32_t> y(128);
    run_grid("transposed", dim3(1), 32, [&] { transposed_kernel(y.data(), x.data()); });
    for (uint32_t matrix = 0; matrix < 4; ++matrix)
      for (uint32_t lane = 0; lane < 32; ++lane) {
        const uint32_t first = matrix * 64 + lane % 4 * 16 + lane / 4;
        EXPECT_EQ(y[matrix * 32 + lane], first | (first + 8) << 16);
      }
  }
}

/// d[16, 8] = a[16, 16] b[8, 16]^T by one warp through shared memory, ldmatrix and mma.
void tile_kernel(float* d, const f16* a, const f16* b) {
  struct Tiles {
    f16 a[16][24];
    f16 b[16][24];
  };
  auto& tiles = shared<Tiles>();
  const int lane = thread();
  for (int i = lane; i < 256; i += 32) tiles.a[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) tiles.b[i / 16][i % 16] = b[i];
  __syncthreads();
  uint32_t left[4];
  uint32_t right[4];
  ldmatrix_x4(left, &tiles.a[lane % 16][lane / 16 * 8]);
  ldmatrix_x4(right, &tiles.b[lane % 8][lane / 8 % 2 * 8]);
  float sum[4] = {};
  const uint32_t pair[2] = {right[0], right[1]};
  mma_16816(sum, left, pair);
  for (int e = 0; e < 4; ++e) d[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = sum[e];
}

TEST_F(Harness, WarpsMultiplyMatrices) {
  std::vector<f16> a(256), b(128);
  for (size_t i = 0; i < a.size(); ++i) a[i].bits = f32_to_f16(static_cast<float>(i % 13) - 6.0F);
  for (size_t i = 0; i < b.size(); ++i) b[i].bits = f32_to_f16(static_cast<float>(i % 7) - 3.0F);
  for (const Schedule& each : schedules) {
    set_schedule(each);
    std::vector<float> d(128);
    run_grid("tile", dim3(1), 32, [&] { tile_kernel(d.data(), a.data(), b.data()); });
    for (size_t i = 0; i < 16; ++i)
      for (size_t j = 0; j < 8; ++j) {
        float expected = 0;
        for (size_t k = 0; k < 16; ++k) expected += f16_to_f32(a[i * 16 + k].bits) * f16_to_f32(b[j * 16 + k].bits);
        EXPECT_EQ(d[i * 8 + j], expected);
      }
  }
}

/// y = x through a double-buffered shared tile; `wait` says how many groups may still be under way
/// when one is read.
template <int Pending>
void copy_kernel(float* y, const float* x, int tiles) {
  struct Tiles {
    alignas(16) float of[2][128];
  };
  auto& buffer = shared<Tiles>();
  const auto fetch = [&](int tile) {
    cp_async_16(&buffer.of[tile % 2][thread() * 4], x + tile * 128 + thread() * 4, true);
    cp_async_commit();
  };
  fetch(0);
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles)
      fetch(tile + 1);
    else
      cp_async_commit();
    cp_async_wait<Pending>();
    __syncthreads();
    for (int i = thread(); i < 128; i += 32) y[tile * 128 + i] = buffer.of[tile % 2][i];
    __syncthreads();
  }
  cp_async_wait<0>();
}

template <int Pending>
std::vector<float> copied(const std::vector<float>& x) {
  std::vector<float> y(x.size());
  run_grid("copy", dim3(1), 32, [&] { copy_kernel<Pending>(y.data(), x.data(), static_cast<int>(x.size()) / 128); });
  return y;
}

std::vector<float> counting(size_t count) {
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) x[i] = static_cast<float>(i + 1);
  return x;
}

TEST_F(Harness, CopiesArriveWhenTheyAreWaitedFor) {
  // cp.async reads whole aligned 16 bytes.
  const std::vector<float> x = counting(5 * 128);
  for (const Schedule& each : schedules) {
    set_schedule(each);
    EXPECT_EQ(copied<1>(x), x);
  }
}

TEST_F(Harness, AnExceptionInAThreadReachesTheCaller) {
  EXPECT_THROW(run_grid("throw", dim3(2), 64,
                        [] {
                          __syncthreads();
                          if (thread() == 40) throw UsageError("from a thread");
                          __syncthreads();
                        }),
               UsageError);
  std::vector<int> ran(64);
  run_grid("afterwards", dim3(1), 64, [&] { ran[static_cast<size_t>(thread())] = 1; });
  EXPECT_THAT(ran, ::testing::Each(1));
}

// Planted bugs that the harness itself finds

TEST_F(Harness, FindsAMissingCopyWait) {
  const std::vector<float> x = counting(5 * 128);
  set_schedule({Order::forward, 0, true});
  EXPECT_NE(copied<2>(x), x) << "read before it arrived";
  EXPECT_THAT(refusal(dim3(1), 32,
                      [&] {
                        struct Tile {
                          alignas(16) float of[128];
                        };
                        cp_async_16(&shared<Tile>().of[thread() * 4], x.data() + thread() * 4, true);
                        cp_async_commit();
                      }),
              HasSubstr("ended with copies nobody waited for"));
}

/// Two barriers where the GPU expects one.
void two_barriers_kernel() {
  if (thread() < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST_F(Harness, FindsADivergentBarrier) {
  EXPECT_THAT(refusal(dim3(1), 64, two_barriers_kernel),
              AllOf(HasSubstr("planted, block (0, 0, 0): divergent barrier"), HasSubstr("thread 0 waits"),
                    HasSubstr("thread 32 waits"), HasSubstr("harness_test.cpp:")));
}

TEST_F(Harness, FindsABarrierThatSomeNeverReach) {
  EXPECT_THAT(refusal(dim3(1), 64,
                      [] {
                        if (thread() != 33) __syncthreads();
                      }),
              AllOf(HasSubstr("__syncthreads"), HasSubstr("for ever"), HasSubstr("thread 33 has ended")));
}

TEST_F(Harness, FindsWrongMasks) {
  EXPECT_THAT(refusal(dim3(1), 32,
                      [] {
                        if (thread() != 5) __shfl_xor_sync(everyone, 1.0F, 1);
                      }),
              HasSubstr("thread 5 has ended"));
  EXPECT_THAT(refusal(dim3(1), 32, [] { __shfl_xor_sync(0x0000FFFFU, 1.0F, 1); }), HasSubstr("does not name it"));
  EXPECT_THAT(refusal(dim3(1), 16, [] { __syncwarp(); }), HasSubstr("names thread 16 of a block of 16"));
  EXPECT_THAT(refusal(dim3(1), 32,
                      [] {
                        if (thread() < 16) __shfl_xor_sync(0x0000FFFFU, 1.0F, 16);
                      }),
              HasSubstr("reads a lane outside its mask"));
  EXPECT_THAT(refusal(dim3(1), 32,
                      [] {
                        if (thread() < 16)
                          __syncwarp();
                        else
                          __shfl_xor_sync(everyone, 1.0F, 1);
                      }),
              HasSubstr("lanes of one mask at different places"));
}

TEST_F(Harness, FindsWrongUseOfClusters) {
  std::vector<float> y(64);
  EXPECT_THAT(refusal(
                  dim3(1, 1, 3), 64, [&] { cluster_sum_kernel(y.data(), true, false); }, 3),
              HasSubstr("shared memory of a block of which threads have ended"));
  EXPECT_THAT(refusal(
                  dim3(1, 1, 2), 32,
                  [] {
                    cluster_arrive();
                    cluster_arrive();
                  },
                  2),
              HasSubstr("cluster_arrive twice"));
  EXPECT_THAT(refusal(
                  dim3(1, 1, 2), 32, [] { cluster_wait(); }, 2),
              HasSubstr("without cluster_arrive"));
  EXPECT_THAT(refusal(
                  dim3(1, 1, 2), 32, [] { cluster_arrive(); }, 2),
              HasSubstr("ended between"));
  EXPECT_THAT(refusal(
                  dim3(1, 1, 2), 32,
                  [] {
                    if (blockIdx.z == 1 && thread() == 7) return;
                    cluster_arrive();
                    cluster_wait();
                  },
                  2),
              AllOf(HasSubstr("cluster_wait"), HasSubstr("for ever"), HasSubstr("thread 7 has ended")));
  EXPECT_THAT(refusal(
                  dim3(1, 1, 2), 32,
                  [] {
                    if (blockIdx.z == 1) __syncthreads();
                    if (blockIdx.z == 1 && thread() == 0) __syncthreads();
                    cluster_arrive();
                    cluster_wait();
                  },
                  2),
              AllOf(HasSubstr("block (0, 0, 1)"), HasSubstr("__syncthreads"), HasSubstr("for ever")));
  const float4 outside{};
  EXPECT_THAT(refusal(
                  dim3(1, 1, 2), 32, [&] { load_cluster_16(&outside, 1); }, 2),
              HasSubstr("not in shared memory"));
  EXPECT_THAT(refusal(
                  dim3(1, 1, 2), 32, [&] { load_cluster_16(&outside, 2); }, 2),
              HasSubstr("that the cluster does not have"));
  EXPECT_THAT(refusal(
                  dim3(1, 1, 3), 32, [] {}, 2),
              HasSubstr("clusters of 2 in a grid 3 deep"));
  EXPECT_THAT(refusal(
                  dim3(1, 1, 9), 32, [] {}, 9),
              HasSubstr("clusters of 9"));
  set_architecture(89);
  EXPECT_THAT(refusal(
                  dim3(1, 1, 2), 32, [] {}, 2),
              HasSubstr("compute capability 8.9"));
  set_architecture(90);
}

TEST_F(Harness, FindsAMisalignedCopy) {
  const std::vector<float> x = counting(256);
  EXPECT_THAT(refusal(dim3(1), 32,
                      [&] {
                        struct Tile {
                          alignas(16) float of[256];
                        };
                        cp_async_16(&shared<Tile>().of[thread() * 4 + 1], x.data(), true);
                      }),
              HasSubstr("not 16-byte aligned"));
}

// Planted bugs that the sanitizers find

TEST_F(Harness, ThreadSanitizerFindsSumsThatABlockDidNotPublish) {
  if (!has_thread_sanitizer) GTEST_SKIP() << "this build has no ThreadSanitizer";
  std::vector<float> y(64);
  EXPECT_DEATH(run_grid(
                   "cluster", dim3(1, 1, 3), 64, [&] { cluster_sum_kernel(y.data(), false, true); }, 0, 3),
               "data race");
}

TEST_F(Harness, AddressSanitizerFindsWritesOutOfBounds) {
  if (!has_address_sanitizer) GTEST_SKIP() << "this build has no AddressSanitizer";
  std::vector<float> y(63);
  EXPECT_DEATH(run_grid("global", dim3(1), 64, [&] { y.data()[thread()] = 1.0F; }), "heap-buffer-overflow");
  EXPECT_DEATH(run_grid("shared", dim3(1), 64,
                        [] {
                          struct Tile {
                            float of[63];
                          };
                          float* tile = shared<Tile>().of;
                          tile[thread()] = 1.0F;
                        }),
               "heap-buffer-overflow");
}

/// Thread t reads what its neighbour wrote, twice; the flags leave one of the barriers out.
void neighbour_kernel(float* y, bool first, bool second) {
  struct Row {
    float of[64];
  };
  auto& row = shared<Row>();
  for (int round = 0; round < 2; ++round) {
    row.of[thread()] = static_cast<float>(thread() + round);
    if (first) __syncthreads();
    y[round * 64 + thread()] = row.of[(thread() + 1) % 64];
    if (second) __syncthreads();
  }
}

TEST_F(Harness, ThreadSanitizerFindsMissingBarriers) {
  if (!has_thread_sanitizer) GTEST_SKIP() << "this build has no ThreadSanitizer";
  std::vector<float> y(128);
  const auto run = [&](bool first, bool second) {
    run_grid("neighbour", dim3(1), 64, [&] { neighbour_kernel(y.data(), first, second); });
  };
  EXPECT_DEATH(run(false, true), "data race");
  EXPECT_DEATH(run(true, false), "data race");
  for (const Schedule& each : schedules) {
    set_schedule(each);
    run(true, true);
    for (size_t i = 0; i < 128; ++i) EXPECT_EQ(y[i], static_cast<float>((i + 1) % 64 + i / 64));
  }
}

TEST_F(Harness, ThreadSanitizerFindsRacesBetweenBlocks) {
  if (!has_thread_sanitizer) GTEST_SKIP() << "this build has no ThreadSanitizer";
  std::vector<float> y(64);
  EXPECT_DEATH(run_grid("blocks", dim3(2), 32, [&] { y[static_cast<size_t>(thread())] = 1.0F; }), "data race");
  run_grid("blocks", dim3(2), 32, [&] { y[static_cast<size_t>(block() * 32 + thread())] = 1.0F; });
}

/// y[32] = the sum of what the blocks left in partial [blocks, 32], by the last block to arrive.
template <class ArrivesLast>
void split_kernel(float* y, float* partial, ArrivesLast arrives_last) {
  const auto blocks = static_cast<int>(gridDim.x);
  partial[block() * 32 + thread()] = static_cast<float>(block() + 1);
  if (!arrives_last(blocks)) return;
  y[thread()] = 0.0F;
  for (int other = 0; other < blocks; ++other) y[thread()] += partial[other * 32 + thread()];
}

TEST_F(Harness, TheLastSplitToArriveSeesTheOthers) {
  std::vector<float> partial(3 * 32);
  unsigned semaphore = 0;
  for (const Schedule& each : schedules) {
    set_schedule(each);
    std::vector<float> y(32);
    run_grid("split", dim3(3), 32, [&] {
      split_kernel(y.data(), partial.data(), [&](int splits) { return arrives_last(semaphore, splits); });
    });
    EXPECT_THAT(y, ::testing::Each(6.0F));
    EXPECT_EQ(semaphore, 0U);
  }
}

TEST_F(Harness, ThreadSanitizerFindsSemaphoresThatOrderTooLittle) {
  if (!has_thread_sanitizer) GTEST_SKIP() << "this build has no ThreadSanitizer";
  std::vector<float> y(32), partial(3 * 32);
  unsigned semaphore = 0;
  const auto run = [&]<std::memory_order order>(bool with_barrier) {
    semaphore = 0;
    run_grid("split", dim3(3), 32, [&] {
      split_kernel(y.data(), partial.data(), [&](int splits) {
        auto& count = shared<SplitArrival>();
        if (with_barrier) __syncthreads();
        if (thread() == 0)
          count.last = std::atomic_ref(semaphore).fetch_add(1, order) == static_cast<unsigned>(splits) - 1;
        __syncthreads();
        return count.last;
      });
    });
  };
  EXPECT_DEATH(run.operator()<std::memory_order_relaxed>(true), "data race");
  EXPECT_DEATH(run.operator()<std::memory_order_acquire>(true), "data race") << "no release";
  EXPECT_DEATH(run.operator()<std::memory_order_release>(true), "data race") << "no acquire";
  EXPECT_DEATH(run.operator()<std::memory_order_acq_rel>(false), "data race")
      << "before the other threads have written";
  run.operator()<std::memory_order_acq_rel>(true);
}

}  // namespace
}  // namespace nibblenet::hostexec
