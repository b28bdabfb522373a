#pragma once

#include "kernels/cuda/gemm/product_case.h"

// Fit of gemm/wgmma.cuh, on GPUs with wgmma. Requires fp16 activations, C and K multiples of 8, and
// 16-byte aligned operands.

namespace nibblenet::wgmma {

/// Forward: any packed or fp16 weight. Weights that do not train are expanded to rows of fp16
/// values in the workspace first, unless unpacks_strings().
bool fits(const ProductCase& c);
/// Whether the kernel itself unpacks trellis strings: in linear layers. A convolution has many
/// blocks of pixels, each of which would unpack all strings again.
bool unpacks_strings(const ProductCase& c);
/// Also requires stride 1, and weights that train.
bool fits_data_gradient(const ProductCase& c);
bool fits_weight_gradient(const ProductCase& c);

}  // namespace nibblenet::wgmma
