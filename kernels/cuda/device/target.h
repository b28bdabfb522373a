#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

// The nominal GPU that tilings are computed for. Everything here is a constant, never a property of
// the actual device: results depend on the shapes alone.

namespace nibblenet {

inline constexpr int64_t nominal_multiprocessors = 132;  ///< of an H100 or H200
/// Dynamic shared memory per block that every GPU from compute capability 8.0 on offers, beside
/// 1 KB of static shared memory: both together have 99 KB on 8.6 and 8.9.
inline constexpr int block_shared_bytes = 98 << 10;

/// a / b for integers above 0, rounded up.
template <class A, class B>
constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

/// Split-K policy: the number of splits of a reduction, so that a small product fills the GPU.
struct SplitK {
  int64_t blocks_wanted;
  int64_t most = std::numeric_limits<int>::max();

  /// `blocks`: of the product without splits. `longest`: most splits that are still long enough.
  constexpr int splits(int64_t blocks, int64_t longest) const {
    return static_cast<int>(
        std::clamp<int64_t>(std::min(blocks_wanted / std::max<int64_t>(blocks, 1), longest), 1, most));
  }
};

namespace split_k {

inline constexpr SplitK few_pixels{nominal_multiprocessors};    ///< one block to each multiprocessor
inline constexpr SplitK few_rows{128};                          ///< about one block to each
inline constexpr SplitK mma{.blocks_wanted = 1024, .most = 8};  ///< counted in warps; the last split adds up all
inline constexpr SplitK mma_gradient{2 * nominal_multiprocessors, 256};
inline constexpr SplitK wgmma{2 * nominal_multiprocessors, 64};
inline constexpr SplitK plain{.blocks_wanted = 512, .most = 64};

}  // namespace split_k
}  // namespace nibblenet
