#pragma once

#include "kernels/cuda/gemm/product_case.h"

// Fit of linear/few_rows.cuh.

namespace nibblenet::few_rows {

inline constexpr int most_rows = 16;  ///< of x
/// Most rows by trellis strings, which are decoded again for every 16 rows. By estimate, wgmma
/// takes longer up to here.
inline constexpr int most_string_rows = 48;

/// Requires a linear layer of at most 16 rows (48 by string blocks) of fp16 activations, C a
/// multiple of 8, 16-byte aligned x, and weights in superblocks or string blocks.
bool fits(const ProductCase& c);

}  // namespace nibblenet::few_rows
