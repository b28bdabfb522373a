#include "kernels/cuda/weights/weight_cuda.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "engine/quant/bits.h"
#include "kernels/cuda/weights/launchers.h"
#include "kernels/cuda/weights/string_block.h"
#include "kernels/cuda/weights/superblock.h"

namespace nibblenet {
namespace {

/// Device order [K, taps, C] of a weight [K, C, taps]: maps index k of a filter to PyTorch's order.
struct DeviceOrder {
  int64_t channels;
  int64_t taps;
  explicit DeviceOrder(const Shape& shape) : channels(shape[1]), taps(shape.rank() == 4 ? shape[2] * shape[3] : 1) {}
  int64_t operator()(int64_t k) const { return k % channels * taps + k / channels; }
};

/// Reorders fields of `bits` bits from the file's order to device order, channel by channel. The
/// number of bytes stays.
std::vector<uint8_t> reordered(const std::vector<uint8_t>& fields, const Shape& shape, int bits) {
  const DeviceOrder order(shape);
  if (order.taps == 1 || fields.empty()) return fields;
  std::vector<uint8_t> result(fields.size());
  const int64_t count = shape.inner_elements();
  const int64_t stride = channel_stride(count, bits);
#pragma omp parallel for schedule(static)
  for (int64_t channel = 0; channel < shape[0]; ++channel) {
    FieldWriter writer(result.data() + channel * stride);
    for (int64_t k = 0; k < count; ++k) writer.put(read_field(fields.data() + channel * stride, order(k), bits), bits);
    writer.finish();
  }
  return result;
}

/// Codes in device order as superblocks. Linear schemes have one unused code, which their codebook
/// reads as 0. It is replaced by 0's code, for kernels that take codes as integers.
std::vector<uint8_t> superblocks_of(std::vector<uint8_t> codes, const PackedTensor& packed) {
  const int64_t rows = packed.shape[0];
  const int64_t columns = packed.shape.inner_elements();
  const int bits = packed.scheme.bits;
  if (!traits_of(packed, WeightLayout::superblocks).integers || packed.scheme.zero_point)
    return to_superblocks(codes, rows, columns, bits);
  const uint32_t unused = (1U << bits) - 1U;  // 0's code with one more bit, the highest
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    uint8_t* channel = codes.data() + row * packed.code_stride();
    for (int64_t column = 0; column < columns; ++column) {
      if (read_field(channel, column, bits) != unused) continue;
      const int64_t highest = column * bits + bits - 1;
      channel[highest / 8] &= static_cast<uint8_t>(~(1U << highest % 8));
    }
  }
  return to_superblocks(codes, rows, columns, bits);
}

std::vector<uint8_t> codes_of(const PackedTensor& packed, WeightLayout layout) {
  const bool suits = layout == WeightLayout::channels ||
                     (layout == WeightLayout::strings
                          ? packed.scheme.is_trellis() && suits_string_blocks(packed.shape.inner_elements())
                          : suits_superblocks(packed));
  if (!suits) fail<Error>("no such layout of {}, {}", to_string(packed.shape), to_string(packed.scheme));
  if (layout == WeightLayout::strings) return to_string_blocks(packed.codes, packed.shape, packed.scheme.quarters());
  if (packed.scheme.is_trellis()) return packed.codes;
  std::vector<uint8_t> codes = reordered(packed.codes, packed.shape, packed.scheme.bits);
  if (layout == WeightLayout::channels) return codes;
  return superblocks_of(std::move(codes), packed);
}

/// Turns rows of fp16 values into superblocks, in place.
void fp16_to_superblocks(std::vector<f16>& fp16, const Shape& shape) {
  constexpr int bits = 16;
  if (best_layout(shape) != WeightLayout::superblocks) fail<Error>("superblocks of fp16, {}", to_string(shape));
  std::vector<uint8_t> bytes(fp16.size() * sizeof(f16));
  std::memcpy(bytes.data(), fp16.data(), bytes.size());
  bytes = to_superblocks(bytes, shape[0], shape.inner_elements(), bits);
  std::memcpy(fp16.data(), bytes.data(), bytes.size());
}

float largest_weight(const PackedTensor& packed, const Codebook& codebook) {
  float scale = 0;
  for (int64_t group = 0; group < packed.groups(); ++group) scale = std::max(scale, std::fabs(packed.scale(group)));
  return largest_magnitude(codebook.values) * (scale / codebook.scale_to);
}

}  // namespace

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  return largest;
}

float normalisation_for(float largest) {
  if (!(largest > 0) || !std::isfinite(largest)) return 1.0F;
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0F, std::clamp(-exponent, -126, 126));
}

WeightCuda::WeightCuda(MemoryResource& memory, TensorView<const float> values, Precision precision, Stream& stream,
                       WeightLayout layout, bool normalised)
    : shape_(values.shape()), traits_(traits_of(precision, layout)) {
  resident_.weights = static_cast<int64_t>(bytes_of(precision)) * shape_.elements();
  if (traits_.form == WeightForm::float32) {
    floats_ = Tensor<float>(memory, shape_, MemoryCategory::weights);
    copy_to_device(floats_.data(), values.data(), values.span().size_bytes(), stream);
    return;
  }
  if (normalised) normalisation_ = normalisation_for(largest_magnitude(values.span()));
  const DeviceOrder order(shape_);
  const int64_t count = shape_.inner_elements();
  std::vector<f16> fp16(static_cast<size_t>(shape_.elements()));
#pragma omp parallel for schedule(static)
  for (int64_t channel = 0; channel < shape_[0]; ++channel)
    for (int64_t k = 0; k < count; ++k)
      fp16[static_cast<size_t>(channel * count + k)].bits =
          f32_to_f16(values[channel * count + order(k)] * normalisation_);
  if (traits_.layout == WeightLayout::superblocks) fp16_to_superblocks(fp16, shape_);
  fp16_ = resident_copy(memory, fp16, MemoryCategory::weights, stream);
}

WeightCuda::WeightCuda(MemoryResource& memory, const PackedTensor& packed, Stream& stream, WeightLayout layout)
    : shape_(packed.shape),
      traits_(traits_of(packed, layout)),
      codes_(resident_copy(memory, codes_of(packed, layout), MemoryCategory::codes, stream)),
      scales_(resident_copy(memory, packed.scales, MemoryCategory::scales, stream)),
      zero_points_(resident_copy(memory, packed.zero_points, MemoryCategory::zero_points, stream)),
      block_ids_(resident_copy(memory, reordered(packed.block_ids, packed.shape, packed.block_id_bits()),
                               MemoryCategory::block_ids, stream)),
      stored_codebook_(resident_copy(memory, packed.codebook, MemoryCategory::codebooks, stream)),
      codebook_(codebook_of(packed)),
      view_(view_of(packed, codebook_)),
      resident_(resident_size(packed)),
      normalisation_(normalisation_for(largest_weight(packed, codebook_))),
      value_normalisation_(std::ldexp(normalisation_for(largest_magnitude(codebook_.values)), 14)) {
  resident_.padding += static_cast<int64_t>(codes_.size()) - static_cast<int64_t>(packed.codes.size());
  view_.codes = codes_.data();
  view_.scales = scales_.data();
  view_.zero_points = zero_points_.size() == 0 ? nullptr : zero_points_.data();
  view_.block_ids = block_ids_.size() == 0 ? nullptr : block_ids_.data();
  view_.values = stored_codebook_.size() == 0 ? nullptr : stored_codebook_.data();
}

WeightCuda::WeightCuda(MemoryResource& memory, TensorView<const float> values, TrainsInFp16, Stream& stream,
                       WeightLayout layout)
    : shape_(values.shape()),
      traits_(traits_of(Precision::float16, layout)),
      floats_(memory, shape_, MemoryCategory::weights),
      fp16_(memory, static_cast<size_t>(shape_.elements()), MemoryCategory::weights),
      trained_(&stream),
      normalisation_(64.0F) {
  traits_.trains = true;
  if (layout == WeightLayout::superblocks) rows_ = Buffer<f16>(memory, fp16_.size(), MemoryCategory::weights);
  resident_.weights = static_cast<int64_t>(floats_.view().span().size_bytes() + fp16_.bytes() + rows_.bytes());
  copy_to_device(floats_.data(), values.data(), values.span().size_bytes(), stream);
  changed();
}

void WeightCuda::changed() {
  if (trained_ != nullptr) cuda::renew_fp16(*this, *trained_);
}

const uint8_t* WeightCuda::superblocks() const {
  return traits_.form == WeightForm::packed ? codes_.data() : reinterpret_cast<const uint8_t*>(fp16_.data());
}

bool WeightCuda::step_per_channel() const {
  const Granularity::Kind kind = view_.groups.kind;
  return traits_.form == WeightForm::packed &&
         (kind == Granularity::Kind::channel || kind == Granularity::Kind::tensor);
}

TensorView<float> WeightCuda::values() {
  if (traits_.form == WeightForm::float32 || trained_ != nullptr) return floats_.view();
  throw Error(traits_.form == WeightForm::packed
                  ? "a packed weight has no float values: export it, or train the float model it came from"
                  : "a float16 weight cannot be trained or saved: load the model in float32");
}

}  // namespace nibblenet
