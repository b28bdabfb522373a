#pragma once

#include "kernels/cuda/gemm/product_case.h"

// Fit of the few-outputs kernels: linear/few_outputs.cuh and linear/few_outputs_gradient.cu.

namespace nibblenet {

inline constexpr int few_outputs_rows = 8;  ///< of x, for a block

namespace few_outputs {

inline constexpr int most_outputs = 32;           ///< of a forward product
inline constexpr int most_gradient_outputs = 16;  ///< of gradients

/// Requires a linear layer of at most 32 outputs, fp16 activations, C a multiple of 8, 16-byte
/// aligned x, and weights in channel layout.
bool fits(const ProductCase& c);
/// Both gradients: requires a linear layer of at most 16 outputs, fp16 activations, C a multiple of
/// 8, and 16-byte aligned x and dx.
bool fits_gradients(const ProductCase& c);

}  // namespace few_outputs
}  // namespace nibblenet
