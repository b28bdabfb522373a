#pragma once

#include "engine/quant/quantizer.h"
#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "kernels/training.h"

// Launchers of operations on weights: quantizing, rounding, fp16 copies. Each computes its grid,
// starts its kernels and does not wait. Views lie in device memory. kernels/inference.h and
// kernels/training.h have the formulas and shapes.

namespace nibblenet::cuda {

/// Renews the fp16 copies of a weight that trains, from its values.
void renew_fp16(WeightCuda& w, Stream& stream);
void round_weights(TensorView<float> values, TensorView<const float> master, const RoundingRule& rule, Stream& stream);
void round_weights_backward(TensorView<float> dweights, TensorView<float> dsteps, TensorView<float> dcodebook,
                            TensorView<const float> master, const RoundingRule& rule, Workspace& workspace,
                            Stream& stream);
/// keys[3, G] of each group: the bits of -lowest, the bits of highest, and the bits of |largest|
/// above the complement of its index. `blocks`: the group of each weight, or null where `map`
/// computes it.
void find_extremes(uint64_t* keys, TensorView<const float> weights, const GroupMap& map, const uint32_t* blocks,
                   Stream& stream);
/// Decodes the keys. `weights` and `keys` lie on the host.
std::vector<Extremes> extremes_from_keys(std::span<const uint64_t> keys, TensorView<const float> weights);
/// Encodes weights [K, …] to codes[K, stride]; padding is zeros.
void encode(TensorView<uint8_t> codes, TensorView<const float> weights, const GroupMap& map, const uint32_t* blocks,
            const Step* steps, const Codebook& codebook, bool affine, Stream& stream);

}  // namespace nibblenet::cuda
