#pragma once

#include <optional>

#include "engine/quant/packed_tensor.h"
#include "kernels/cpu/minimal_filtering.h"
#include "kernels/cpu/narrow_kernels.h"
#include "kernels/weight.h"

namespace nibblenet {

/// The panels of a weight [K, C] or [K, C, R, S] (kernels/cpu/narrow_kernels.h).
struct PanelLayout {
  int64_t channels = 0;  ///< K
  int64_t inputs = 0;    ///< C
  int64_t rows = 1;      ///< R
  int64_t columns = 1;   ///< S
  int64_t group = 4;     ///< values in 4 bytes

  PanelLayout() = default;
  /// The panels of a weight of this shape.
  PanelLayout(const Shape& shape, int64_t values_of_group);
  int64_t taps() const { return rows * columns; }
  /// Values of a window row, and of an output channel, with their padding.
  int64_t padded_row() const { return (columns * inputs + row_granule - 1) / row_granule * row_granule; }
  int64_t depth() const { return rows * padded_row(); }
  int64_t panels() const { return (channels + panel_channels - 1) / panel_channels; }
  /// Output channels of a panel, with and without padding.
  int64_t real_width(int64_t panel) const { return std::min(panel_channels, channels - panel * panel_channels); }
  int64_t width(int64_t panel) const { return (real_width(panel) + panel_granule - 1) / panel_granule * panel_granule; }
  /// Values in front of a panel, and in all of them.
  int64_t offset(int64_t panel) const { return panel * panel_channels * depth(); }
  int64_t values() const { return offset(panels() - 1) + width(panels() - 1) * depth(); }
  /// The place in its panel of the value of a channel of the panel at a tap and an input channel.
  int64_t place(int64_t panel, int64_t channel, int64_t tap, int64_t input) const {
    const int64_t k = tap / columns * padded_row() + tap % columns * inputs + input;
    return (k / group * width(panel) + channel) * group + k % group;
  }
};

/// A weight for products in bfloat16 or int8: packed codes in the order of panels, or float weights
/// rounded to bfloat16 in that order. Scales stay as they are in the file.
class NarrowWeightCpu final : public Weight {
 public:
  /// Reorders packed codes. Requires: has_one_step_a_channel(), and in int8 no why_not_bytes().
  NarrowWeightCpu(MemoryResource& memory, const PackedTensor& packed, Precision precision, const InputRange& input,
                  InstructionSet set);
  /// Rounds float weights to bfloat16.
  NarrowWeightCpu(MemoryResource& memory, TensorView<const float> values, InstructionSet set);

  const Shape& shape() const override { return shape_; }
  bool packed() const override { return bits_ < 16; }
  TensorView<float> values() override;
  void changed() override {}
  std::optional<Precision> product_precision() const override { return precision_; }
  std::optional<ByteScale> byte_scale() const override;
  double product_share(int64_t stride) const override;
  bool writes_bytes() const override { return true; }
  Rotation rotation() const override { return view_.rotation; }
  ResidentSize resident() const override { return resident_; }

  const NarrowKernels& kernels() const { return *kernels_; }
  const PanelLayout& layout() const { return layout_; }
  const InputRange& input() const { return input_; }
  /// Whether values lie in memory as products need them: nothing is to be unpacked.
  bool unpacked() const { return !packed(); }
  /// Unpacks groups [first, first + count) of a panel; `first` and `count` are multiples of 2 where
  /// a group has 2 values.
  void unpack(int64_t panel, int64_t first, int64_t count, std::byte* out) const;
  /// The groups of a panel from `first` on. Requires: unpacked().
  const std::byte* unpacked_panel(int64_t panel, int64_t first) const;
  /// factors[k] of a panel's channels: weight = value * factor.
  void factors(int64_t panel, float* factors) const;
  /// What signed inputs, stored as unsigned bytes, add to the sums of a panel's channels
  /// [panel_channels]; null where they add nothing.
  const int32_t* corrections(int64_t panel) const;

  /// The kernels of minimal filtering, with this stride; null where it is not 1, or factors would
  /// not fit bytes.
  const FilterKernels* filter(int64_t stride) const { return stride == 1 ? filter_ : nullptr; }
  /// What differences of inputs, stored as unsigned bytes, add to the sums of a panel's channels
  /// [panel_channels] in the even and the odd columns of a filtered convolution; null where they
  /// add nothing.
  const int32_t* filter_corrections(int64_t panel, bool odd) const;
  /// The factors of groups [first, first + count) of a window row's input channels. They lie
  /// `factor_bytes` apart in `out`. `first` and `count` are multiples of 2 where a group has 2
  /// values. Requires: filter(1), and count at most filtered_groups.
  void unpack_filtered(int64_t panel, int64_t row, int64_t first, int64_t count, std::byte* out,
                       int64_t factor_bytes) const;
  static constexpr int64_t filtered_groups = 16;

 private:
  void reorder(const PackedTensor& packed);
  void sum_corrections(const PackedTensor& packed);
  void sum_filter_corrections(const PackedTensor& packed);
  template <class Use>
  void for_each_value(const PackedTensor& packed, int64_t channel, Use use) const;

  Shape shape_;
  Precision precision_;
  InputRange input_;
  const NarrowKernels* kernels_;
  PanelLayout layout_;
  int bits_;  ///< of a value in memory; 16: bfloat16
  Buffer<uint8_t> codes_;
  Buffer<uint8_t> scales_;
  Buffer<uint8_t> zero_points_;
  Buffer<ValueTable> table_;  ///< one, of packed weights
  Buffer<int32_t> corrections_;
  const FilterKernels* filter_ = nullptr;
  Buffer<int32_t> filter_corrections_;  ///< [even, odd][panels][panel_channels]
  PackedView view_;                     ///< of the scales alone
  float unit_ = 1.0F;
  ResidentSize resident_;
};

}  // namespace nibblenet
