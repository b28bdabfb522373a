#pragma once

#include "engine/quant/packed_tensor.h"
#include "kernels/activations.h"

namespace nibblenet {

/// How packed codes, or fp16 weights, lie in device memory.
enum class WeightLayout : uint8_t {
  channels,    ///< as in files: one output channel after the other, in device order
  superblocks  ///< kernels/cuda/weights/superblock.h, rows in device order
};
/// What a weight in device memory is stored as.
enum class WeightForm : uint8_t { float32, float16, packed };

/// All of a weight that decides which kernels can read it.
struct WeightTraits {
  WeightForm form = WeightForm::float32;
  WeightLayout layout = WeightLayout::channels;
  int bits = 16;          ///< of a code, or of an fp16 weight
  bool integers = false;  ///< codes stand for integers, but for a common offset and their scale
  bool trains = false;    ///< float32 values, and fp16 copies of them
  /// How many neighbours in a row share a scale, where superblocks are cut along these runs; 0: all
  /// of them.
  int64_t scale_run = 0;
  int64_t groups = 1;  ///< that have a scale of their own
};

/// Superblocks where the tensor cores' products can use them, and they take no more bytes than
/// channels.
WeightLayout best_layout(const PackedTensor& packed);
/// The same for weights stored in float16.
WeightLayout best_layout(const Shape& shape);
/// The layout of a weight that trains: wgmma reads rows, in the forward product too.
WeightLayout trained_layout(const Shape& shape, bool with_wgmma);
/// Whether a packed tensor can lie in superblocks, however many bytes they take.
bool suits_superblocks(const PackedTensor& packed);

/// Of a packed weight in this layout.
WeightTraits traits_of(const PackedTensor& packed, WeightLayout layout);
/// Of values stored in `precision`.
WeightTraits traits_of(Precision precision, WeightLayout layout);

}  // namespace nibblenet
