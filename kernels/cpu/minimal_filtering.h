#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/processor.h"

namespace nibblenet {

// Minimal filtering (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv
// 1509.09308) along the rows of a convolution in int8. Two neighbouring output columns share
// products: a window row of 3 takes 4 of them in place of 6, one of 5 takes 7 in place of 10.
//
// For inputs d0 to d5 and weights g0 to g4 of one window row and input channel:
//
//   even column:  (d0 - d2) g0    + (m1 + m2) / 2      and, of 5:  (d3 - d4) g3    + d4 (g3 + g4)
//   odd column:   (d1 - d3) (-g2) + (m1 - m2) / 2                  (d4 - d5) (-g4) + d4 (g3 + g4)
//   m1 = (d1 + d2) (g0 + g1 + g2),  m2 = (d2 - d1) (g0 - g1 + g2)
//
// All are whole numbers, halves too: m1 + m2 and m1 - m2 are even. So sums are those of the direct
// products, bit for bit. Inputs of at most 127 and weights of at most largest_summand keep every
// factor within a byte.
//
// The factors of a pair lie one behind the other, so that products that are added to the same sums
// are one: [even][odd][m1][m2][both]; even and odd have one factor of 3 and two of 5, and only 5
// has the last.

/// The factors of a pair, and those that only its even column takes. Its odd one takes as many.
constexpr int64_t pair_factors(int64_t columns) { return columns == 3 ? 4 : 7; }
constexpr int64_t own_factors(int64_t columns) { return columns == 3 ? 1 : 2; }

/// The kernels of a number of window columns S. Values are those of an int8 product's groups: bytes
/// where a group has 4, numbers of 16 bits where it has 2. Bytes of differences of inputs are 128
/// more, so that they have no sign.
struct FilterKernels {
  /// out[pair][factor][channel] of a row of pixels x[2 pairs + S - 1][channel].
  void (*inputs)(const std::byte* x, int64_t pairs, int64_t channels, std::byte* out);
  /// The factors of `count` weights: w[column][i], columns `stride` values apart; factors are
  /// `out_stride` values apart.
  void (*weights)(const std::byte* w, int64_t stride, int64_t count, std::byte* out, int64_t out_stride);
  /// From sums of m1 in `even` and of m2 in `odd` to (m1 + m2) / 2 and (m1 - m2) / 2, with `both`
  /// added to each unless it is null.
  void (*sums)(int32_t* even, int32_t* odd, const int32_t* both, int64_t count);
};

/// The kernels for groups of `group` values. `columns`: 3 or 5.
const FilterKernels& filter_kernels(InstructionSet set, int64_t group, int64_t columns);

}  // namespace nibblenet
