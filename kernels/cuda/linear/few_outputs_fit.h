#pragma once

#include "kernels/cuda/gemm/product_case.h"

// What linear/few_outputs.cuh and linear/few_outputs_gradient.cu can compute.

namespace nibblenet {

inline constexpr int few_outputs_rows = 8;  ///< of x, for a block

namespace few_outputs {

inline constexpr int most_outputs = 32;           ///< of a forward product
inline constexpr int most_gradient_outputs = 16;  ///< of gradients

/// Linear layers of at most 32 outputs, fp16 activations, C a multiple of 8, on 16 bytes; weights
/// channel by channel.
bool fits(const ProductCase& c);
/// Both gradients of linear layers of at most 16 outputs, fp16 activations, C a multiple of 8; x
/// and dx on 16 bytes.
bool fits_gradients(const ProductCase& c);

}  // namespace few_outputs
}  // namespace nibblenet
