#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/core/tensor.h"
#include "engine/quant/rotation.h"
#include "engine/quant/scheme.h"

namespace nibblenet {

// Rotated weights (QuaRot, Ashkboos 2024, arXiv 2404.00456; QuIP#, Tseng 2024, arXiv 2402.04396).
// With Q a rotation of a layer's inputs, W x = (W Q)(Q x) if Q is its own inverse. The weights W Q
// are closer to normal than W: codes hold them with a smaller error. Products then read Q x, which
// a pass over the activations computes. Q cuts the input channels into blocks of B, and multiplies
// each by the Hadamard matrix of size B over sqrt(B). B follows from the number of channels, so
// that a file says just that a weight is rotated.

/// B of `channels` input channels: the largest power of two up to 256 that divides their number; 0
/// where it is below 8, and nothing is rotated.
int64_t hadamard_block(int64_t channels);

/// How the inputs of weights [K, C] or [K, C, R, S] are rotated: the weights themselves, and a
/// layer's activations, whose channels are the last dimension. No rotation unless the scheme says
/// so.
Rotation rotation_of_weights(const Scheme& scheme, const Shape& weights);
Rotation rotation_of_inputs(const Scheme& scheme, const Shape& weights);

/// Throws ShapeError naming `name` for rotated weights whose input channels cannot be rotated.
void expect_rotatable(const Scheme& scheme, const Shape& weights, std::string_view name);

/// `scheme`, rotated only where it is and the weights' input channels can be.
Scheme rotated_where_possible(Scheme scheme, const Shape& weights);

/// Rotates x in place. Butterflies go from the closest pairs to the farthest, and 1 / sqrt(block)
/// multiplies their sums: every implementation gives these bits. Uses all OpenMP threads. Requires:
/// a power of two as block, and a multiple of block * stride values.
void hadamard_transform(std::span<float> x, Rotation rotation);

}  // namespace nibblenet
