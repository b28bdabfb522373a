#pragma once

#include "kernels/cuda/gemm/product_case.h"

// Fit of gemm/wgmma.cuh, on GPUs with wgmma. Requires fp16 activations, C and K multiples of 8, and
// 16-byte aligned operands.

namespace nibblenet::wgmma {

inline constexpr int most_codebook_bits = 6;  ///< that wgmma_unpacked takes
/// Copies of each value in the look-up table of wgmma_unpacked (weights/unpack.cuh): as many as
/// leave room for two blocks on a multiprocessor.
constexpr int table_copies(int bits) { return bits == 4 ? 16 : 32; }

/// Forward: any packed or fp16 weight. Weights that do not train are expanded to rows of fp16
/// values in the workspace first.
bool fits(const ProductCase& c);
/// Forward by wgmma_unpacked: also requires packed weights in superblocks or string blocks.
/// Superblocks have one scale a row or for all, and no zero points; codebooks have up to 6 bits, as
/// wider ones would leave no room for a second block on a multiprocessor. String blocks are of
/// linear layers: a convolution has many blocks of pixels, each of which would decode all strings
/// again.
bool fits_unpacked(const ProductCase& c);
/// Also requires stride 1, and weights that train.
bool fits_data_gradient(const ProductCase& c);
bool fits_weight_gradient(const ProductCase& c);

}  // namespace nibblenet::wgmma
