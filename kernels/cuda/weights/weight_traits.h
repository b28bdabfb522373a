#pragma once

#include "engine/quant/packed_tensor.h"
#include "kernels/activations.h"

namespace nibblenet {

/// Layout of packed codes, or of fp16 weights, in device memory.
enum class WeightLayout : uint8_t {
  channels,     ///< as in files: one output channel after the other, in device order
  superblocks,  ///< kernels/cuda/weights/superblock.h, rows in device order
  strings       ///< trellis strings as kernels/cuda/weights/string_block.h has them, columns in device order
};
/// Storage form of a weight in device memory.
enum class WeightForm : uint8_t { float32, float16, packed };

/// Properties of a weight that decide which kernels can read it.
struct WeightTraits {
  WeightForm form = WeightForm::float32;
  WeightLayout layout = WeightLayout::channels;
  int bits = 16;          ///< of a code, or of an fp16 weight, as which string blocks count
  bool integers = false;  ///< codes stand for integers, but for a common offset and their scale
  bool trains = false;    ///< float32 values, and fp16 copies of them
  /// Number of neighbours in a row that share a scale, where superblocks are aligned to these runs;
  /// 0: the whole row.
  int64_t scale_run = 0;
  int64_t groups = 1;         ///< scale groups
  bool steps_inside = false;  ///< superblocks: scales differ inside a row or between a few, or there are zero points
};

/// The layout for a packed tensor: superblocks, or string blocks, where the tensor-core kernels can
/// use them and they take no more bytes than channel layout.
WeightLayout best_layout(const PackedTensor& packed);
/// The layout for weights stored in float16.
WeightLayout best_layout(const Shape& shape);
/// The layout for a weight that trains: wgmma reads rows, in the forward product too.
WeightLayout trained_layout(const Shape& shape, bool with_wgmma);
/// Whether a packed tensor fits superblocks, however many bytes they take.
bool suits_superblocks(const PackedTensor& packed);

/// Traits of a packed weight in this layout.
WeightTraits traits_of(const PackedTensor& packed, WeightLayout layout);
/// Traits of a weight stored in `precision`.
WeightTraits traits_of(Precision precision, WeightLayout layout);

}  // namespace nibblenet
