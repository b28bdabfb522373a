#pragma once

#include <cstdint>
#include <vector>

#include "engine/quant/packed_tensor.h"
#include "kernels/cuda/weights/weight_traits.h"

namespace nibblenet {

/// Device order [K, taps, C] of a weight [K, C, taps]: maps index k of a filter there to PyTorch's
/// order, and back.
struct DeviceOrder {
  int64_t channels;
  int64_t taps;
  explicit DeviceOrder(const Shape& shape) : channels(shape[1]), taps(shape.rank() == 4 ? shape[2] * shape[3] : 1) {}
  int64_t operator()(int64_t k) const { return k % channels * taps + k / channels; }
  int64_t inverse(int64_t k) const { return k % taps * channels + k / taps; }
};

// Packed tensors as CUDA kernels read them: codes in a WeightLayout, and block ids in device order
// (tap by tap, channel by channel in a tap). All other parts lie as in files.

/// Codes as kernels read them. One code of linear schemes without zero points is unused, and reads
/// as 0: superblocks have 0's code in its place, for kernels that take codes as integers. Throws
/// Error for a layout that does not suit the tensor.
std::vector<uint8_t> to_device_codes(const PackedTensor& packed, WeightLayout layout);
/// Block ids as kernels read them; empty for none.
std::vector<uint8_t> to_device_block_ids(const PackedTensor& packed);

/// Inverses, of a tensor whose codes and block ids lie as kernels read them. They decode to the
/// same weights; bits behind a channel's last field are 0.
std::vector<uint8_t> from_device_codes(const PackedTensor& packed, WeightLayout layout);
std::vector<uint8_t> from_device_block_ids(const PackedTensor& packed);

}  // namespace nibblenet
