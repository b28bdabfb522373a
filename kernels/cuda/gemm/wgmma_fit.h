#pragma once

#include "kernels/cuda/gemm/product_case.h"

// What gemm/wgmma.cuh can compute, on GPUs that have it: products of fp16 activations, C and K
// multiples of 8, all of it on 16 bytes.

namespace nibblenet::wgmma {

/// Weights that do not train are expanded to rows of fp16 values in the workspace first, whatever
/// they are stored as.
bool fits(const ProductCase& c);
/// Stride 1; weights that train.
bool fits_data_gradient(const ProductCase& c);
bool fits_weight_gradient(const ProductCase& c);

}  // namespace nibblenet::wgmma
