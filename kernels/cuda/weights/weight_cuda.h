#pragma once

#include "engine/quant/packed_tensor.h"
#include "kernels/activations.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/weights/superblock.h"
#include "kernels/cuda/weights/weight_traits.h"
#include "kernels/weight.h"

namespace nibblenet {

/// The power of two that brings `largest` into [0.5, 1), within what float32 can invert; 1 for what
/// is not a number above 0.
float normalisation_for(float largest);

/// A weight in device memory, in one of the three forms that kernels/cuda/weights/readers.cuh
/// reads.
class WeightCuda : public Weight {
 public:
  /// Float32 in PyTorch's order, or fp16 values in device order; `normalised`: multiplied by
  /// normalisation() before they are rounded.
  WeightCuda(MemoryResource& memory, TensorView<const float> values, Precision precision, Stream& stream,
             WeightLayout layout = WeightLayout::channels, bool normalised = true);
  /// Codes, scales and the rest of a packed tensor, codes and block ids in device order, and
  /// nothing else.
  WeightCuda(MemoryResource& memory, const PackedTensor& packed, Stream& stream,
             WeightLayout layout = WeightLayout::channels);
  /// A weight that trains in fp16: float32 in PyTorch's order, and beside it fp16 values in
  /// `layout` for the forward pass and in rows for the backward pass, which changed() renews. Their
  /// factor is always the same one, so that they depend on the values alone: with 64, weights from
  /// 1e-6 to 1,000 are neither too small for fp16 values nor too large.
  struct TrainsInFp16 {};
  WeightCuda(MemoryResource& memory, TensorView<const float> values, TrainsInFp16, Stream& stream, WeightLayout layout);

  const Shape& shape() const override { return shape_; }
  bool packed() const override { return form() == WeightForm::packed; }
  TensorView<float> values() override;
  void changed() override;
  ResidentSize resident() const override { return resident_; }

  const WeightTraits& traits() const { return traits_; }
  WeightForm form() const { return traits_.form; }
  TensorView<const float> floats() const { return floats_.view(); }
  const f16* fp16() const { return fp16_.data(); }
  /// Of a weight that trains in fp16, null for others: [K, R S C], and superblocks where it has
  /// them.
  f16* rows_in_fp16() {
    if (trained_ == nullptr) return nullptr;
    return layout() == WeightLayout::superblocks ? rows_.data() : fp16_.data();
  }
  const f16* rows_in_fp16() const { return const_cast<WeightCuda*>(this)->rows_in_fp16(); }
  uint8_t* superblocks_in_fp16() {
    const bool has = trained_ != nullptr && layout() == WeightLayout::superblocks;
    return has ? reinterpret_cast<uint8_t*>(fp16_.data()) : nullptr;
  }
  const PackedView& view() const { return view_; }
  /// Of packed codes, and of fp16 values.
  WeightLayout layout() const { return traits_.layout; }
  /// Where superblocks lie, and how.
  const uint8_t* superblocks() const;
  Superblocks superblock_layout() const;
  /// Values by code, for schemes whose values do not lie in device memory.
  const Codebook& codebook() const { return codebook_; }
  /// Power of two by which the largest weight is brought into [0.5, 1): the fp16 kernel multiplies
  /// by it before it rounds, so that neither tiny nor huge weights leave fp16's range.
  float normalisation() const { return normalisation_; }
  /// Packed: whether all weights of an output channel share one step, so that a product may be
  /// multiplied by it at its end. Then few distinct values are rounded to fp16 values, most of them
  /// exact; rounded with their steps, the errors of asymmetric codebooks would add up where
  /// activations have one sign.
  bool step_per_channel() const;
  /// Power of two that brings the largest value of a code into [2^14, 2^15): small ones keep all
  /// their bits in fp16.
  float value_normalisation() const { return value_normalisation_; }

 private:
  Shape shape_;
  WeightTraits traits_;
  Tensor<float> floats_;
  Buffer<f16> fp16_;
  Buffer<f16> rows_;           ///< where halves_ are superblocks of a weight that trains
  Stream* trained_ = nullptr;  ///< where its fp16 values are renewed
  Buffer<uint8_t> codes_;
  Buffer<uint8_t> scales_;
  Buffer<uint8_t> zero_points_;
  Buffer<uint8_t> block_ids_;
  Buffer<float> stored_codebook_;
  Codebook codebook_;
  PackedView view_;
  ResidentSize resident_;
  float normalisation_ = 1.0F;
  float value_normalisation_ = 1.0F;
};

}  // namespace nibblenet
