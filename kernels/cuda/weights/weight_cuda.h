#pragma once

#include "engine/quant/packed_tensor.h"
#include "kernels/activations.h"
#include "kernels/borrowed_weight.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/weights/superblock.h"
#include "kernels/cuda/weights/weight_traits.h"
#include "kernels/weight.h"

namespace nibblenet {

/// The largest magnitude of some values; 0 without any.
float largest_magnitude(std::span<const float> values);
/// The power of two that scales `largest` into [0.5, 1), within what float32 can invert. Returns 1
/// unless `largest` is a finite number above 0.
float normalisation_for(float largest);

/// A weight in device memory, in one of the three forms that weights/readers.cuh reads.
class WeightCuda : public Weight {
 public:
  /// Float32 in PyTorch's order, or fp16 values in device order. `normalised`: multiplied by
  /// normalisation() before rounding to fp16.
  WeightCuda(MemoryResource& memory, TensorView<const float> values, Precision precision, Stream& stream,
             WeightLayout layout = WeightLayout::channels, bool normalised = true);
  /// The parts of a packed tensor and nothing else; codes and block ids are in device order.
  WeightCuda(MemoryResource& memory, const PackedTensor& packed, Stream& stream,
             WeightLayout layout = WeightLayout::channels);
  /// A packed tensor whose parts lie nowhere yet: see lie_at().
  WeightCuda(const PackedTensor& packed, WeightLayout layout);
  /// A weight that trains in fp16: float32 in PyTorch's order, and fp16 copies that changed()
  /// renews, in `layout` for the forward pass and in rows for the backward pass. The copies' factor
  /// is the constant 64, so that they depend on the values alone. It keeps weights from 1e-6 to
  /// 1,000 within fp16's range.
  struct TrainsInFp16 {};
  WeightCuda(MemoryResource& memory, TensorView<const float> values, TrainsInFp16, Stream& stream, WeightLayout layout);

  const Shape& shape() const override { return shape_; }
  bool packed() const override { return form() == WeightForm::packed; }
  TensorView<float> values() override;
  void changed() override;
  Rotation rotation() const override { return view_.rotation; }
  ResidentSize resident() const override { return resident_; }

  /// Says where the parts of a packed weight lie, if they are not its own.
  void lie_at(const DeviceParts& parts);

  const WeightTraits& traits() const { return traits_; }
  WeightForm form() const { return traits_.form; }
  TensorView<const float> floats() const { return floats_.view(); }
  const f16* fp16() const { return fp16_.data(); }
  /// The fp16 copies of a weight that trains, [K, R S C] and superblocks where it has them; null
  /// for other weights.
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
  /// Layout of packed codes, or of fp16 values.
  WeightLayout layout() const { return traits_.layout; }
  /// The superblocks, and their layout.
  const uint8_t* superblocks() const;
  Superblocks superblock_layout() const { return {shape_[0], shape_.inner_elements(), traits_.bits}; }
  /// Values by code, for schemes whose values do not lie in device memory.
  const Codebook& codebook() const { return codebook_; }
  /// Power of two that scales the largest weight into [0.5, 1). The fp16 kernel multiplies by it
  /// before rounding, so that neither tiny nor huge weights leave fp16's range.
  float normalisation() const { return normalisation_; }
  /// Whether all weights of a packed output channel share one step, which the epilogue can then
  /// apply. Only the few distinct code values are rounded to fp16, most of them exactly. Rounding
  /// values times steps instead would add up the errors of asymmetric codebooks where activations
  /// have one sign.
  bool step_per_channel() const;
  /// Power of two that scales the largest code value into [2^14, 2^15): small values keep all their
  /// bits in fp16.
  float value_normalisation() const { return value_normalisation_; }

 private:
  Shape shape_;
  WeightTraits traits_;
  Tensor<float> floats_;
  Buffer<f16> fp16_;
  Buffer<f16> rows_;           ///< rows of a weight that trains, where fp16_ holds superblocks
  Stream* trained_ = nullptr;  ///< stream that renews fp16 copies; null: does not train
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
