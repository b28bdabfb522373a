#include "kernels/cuda/weights/weight_cuda.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cuda/weights/device_order.h"
#include "kernels/cuda/weights/launchers.h"

namespace nibblenet {
namespace {

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

WeightCuda::WeightCuda(const PackedTensor& packed, WeightLayout layout)
    : shape_(packed.shape),
      traits_(traits_of(packed, layout)),
      codebook_(codebook_of(packed)),
      view_(view_of(packed, codebook_)),
      resident_(resident_size(packed)),
      normalisation_(normalisation_for(largest_weight(packed, codebook_))),
      value_normalisation_(std::ldexp(normalisation_for(largest_magnitude(codebook_.values)), 14)) {
  lie_at({});
}

WeightCuda::WeightCuda(MemoryResource& memory, const PackedTensor& packed, Stream& stream, WeightLayout layout)
    : WeightCuda(packed, layout) {
  codes_ = resident_copy(memory, to_device_codes(packed, layout), MemoryCategory::codes, stream);
  scales_ = resident_copy(memory, packed.scales, MemoryCategory::scales, stream);
  zero_points_ = resident_copy(memory, packed.zero_points, MemoryCategory::zero_points, stream);
  block_ids_ = resident_copy(memory, to_device_block_ids(packed), MemoryCategory::block_ids, stream);
  stored_codebook_ = resident_copy(memory, packed.codebook, MemoryCategory::codebooks, stream);
  resident_.padding += static_cast<int64_t>(codes_.size()) - static_cast<int64_t>(packed.codes.size());
  lie_at({codes_.data(), scales_.data(), zero_points_.data(), block_ids_.data(), stored_codebook_.data()});
}

void WeightCuda::lie_at(const DeviceParts& parts) {
  view_.codes = parts.codes;
  view_.scales = parts.scales;
  view_.zero_points = parts.zero_points;
  view_.block_ids = parts.block_ids;
  view_.values = parts.codebook;
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
  return traits_.form == WeightForm::packed ? view_.codes : reinterpret_cast<const uint8_t*>(fp16_.data());
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
