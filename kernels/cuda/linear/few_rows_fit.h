#pragma once

#include "kernels/cuda/gemm/product_case.h"

// What linear/few_rows.cuh can compute.

namespace nibblenet::few_rows {

inline constexpr int most_rows = 16;  ///< of x

/// Linear layers of at most 16 rows of fp16 activations, C a multiple of 8, on 16 bytes; weights in
/// superblocks.
bool fits(const ProductCase& c);

}  // namespace nibblenet::few_rows
