#include "engine/quant/packed_tensor.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "engine/quant/bits.h"
#include "engine/quant/hadamard.h"

namespace nibblenet {
namespace {

static_assert(std::endian::native == std::endian::little, "scales are stored and read as little-endian bytes");

int64_t scale_bytes(ScaleType type) { return type == ScaleType::f16 ? 2 : 4; }

/// The codes 0..2^n-1 as values, for affine schemes.
Codebook affine_codebook(int bits) {
  std::vector<float> values(size_t{1} << bits);
  std::iota(values.begin(), values.end(), 0.0F);
  return make_codebook(values, bits, values.back());
}

template <class T>
void expect_bytes(const std::vector<T>& part, int64_t expected, std::string_view name, std::string_view what) {
  if (static_cast<int64_t>(part.size()) != expected)
    fail<FormatError>("{}: expected {} {}, got {}", name, expected, what, part.size());
}

/// Checks scheme and shape. Returns the number of groups.
int64_t validate_form(const PackedTensor& packed, std::string_view name) {
  try {
    validate(packed.scheme);
    // Every weight takes at least half a bit. Refusing more weights keeps the products below in
    // range.
    if (packed.shape.elements() / 16 > static_cast<int64_t>(packed.codes.size()))
      fail<FormatError>("{} bytes of codes cannot hold {} weights", packed.codes.size(), to_string(packed.shape));
    expect_rotatable(packed.scheme, packed.shape, "the weight");
    return make_group_map(packed.scheme.granularity, packed.shape).groups;
  } catch (const Error& error) {
    fail<FormatError>("{}: {}", name, error.what());
  }
}

void validate_codebook(const PackedTensor& packed, std::string_view name) {
  if (packed.codebook.empty() && !traits_of(packed.scheme.method).trained) return;
  if (packed.scheme.zero_point || packed.scheme.is_trellis())
    fail<FormatError>("{}: a stored codebook with the scheme {}", name, to_string(packed.scheme));
  expect_bytes(packed.codebook, int64_t{1} << packed.scheme.bits, name, "codebook values");
  if (!std::ranges::all_of(packed.codebook, [](float value) { return std::isfinite(value); }) ||
      !std::ranges::is_sorted(packed.codebook))
    fail<FormatError>("{}: the stored codebook is not finite and ascending", name);
}

void validate_scales(const PackedTensor& packed, int64_t groups, std::string_view name) {
  const Codebook codebook = codebook_of(packed);
  float largest = 0;
  for (const float value : codebook.values) largest = std::max(largest, std::fabs(value));
  const Rotation rotation = rotation_of_weights(packed.scheme, packed.shape);
  const auto added = static_cast<float>(std::max<int64_t>(rotation.block, 1));  // to turn a weight back
  for (int64_t group = 0; group < groups; ++group) {
    const float scale = packed.scale(group);
    if (!std::isfinite(scale)) fail<FormatError>("{}: the scale of group {} is NaN or infinite", name, group);
    if (!std::isfinite(largest * (scale / codebook.scale_to) * added))
      fail<FormatError>("{}: the scale of group {}, {}, decodes to infinite weights", name, group, scale);
  }
}

void validate_zero_points(const PackedTensor& packed, int64_t groups, std::string_view name) {
  expect_bytes(packed.zero_points, packed.scheme.zero_point ? groups : 0, name, "zero points");
  for (const uint8_t zero_point : packed.zero_points)
    if (zero_point >> packed.scheme.bits != 0)
      fail<FormatError>("{}: zero point {} does not fit {} bits", name, zero_point, packed.scheme.bits);
}

void validate_block_ids(const PackedTensor& packed, int64_t groups, std::string_view name) {
  const int64_t channels = packed.shape[0];
  const int64_t inner = packed.shape.inner_elements();
  const int bits = packed.block_id_bits();
  const bool is_sorted = traits_of(packed.scheme.method).sorted;
  expect_bytes(packed.block_ids, is_sorted ? channels * channel_stride(inner, bits) : 0, name, "bytes of block ids");
  if (!is_sorted || groups == int64_t{1} << bits) return;

  int64_t largest = 0;
#pragma omp parallel for reduction(max : largest)
  for (int64_t channel = 0; channel < channels; ++channel) {
    const uint8_t* ids = packed.block_ids.data() + channel * packed.block_id_stride();
    for (int64_t k = 0; k < inner; ++k) largest = std::max<int64_t>(largest, read_field(ids, k, bits));
  }
  if (largest >= groups) fail<FormatError>("{}: block id {} of a tensor of {} blocks", name, largest, groups);
}

}  // namespace

int PackedTensor::block_id_bits() const {
  if (!traits_of(scheme.method).sorted) return 0;
  return std::max(1, static_cast<int>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(groups(), 1) - 1))));
}

int64_t PackedTensor::code_stride() const {
  return scheme.is_trellis() ? 0 : channel_stride(shape.inner_elements(), scheme.bits);
}

int64_t PackedTensor::block_id_stride() const { return channel_stride(shape.inner_elements(), block_id_bits()); }

float PackedTensor::scale(int64_t group) const {
  const uint8_t* bytes = scales.data() + group * scale_bytes(scheme.scale);
  if (scheme.scale == ScaleType::f16) {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes, sizeof(bits));
    return f16_to_f32(bits);
  }
  float value = 0;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

void validate(const PackedTensor& packed, std::string_view name) {
  const int64_t groups = validate_form(packed, name);
  expect_bytes(packed.codes,
               packed.scheme.is_trellis() ? trellis_layout(packed).bytes() : packed.shape[0] * packed.code_stride(),
               name, "bytes of codes");
  expect_bytes(packed.scales, groups * scale_bytes(packed.scheme.scale), name, "bytes of scales");
  validate_codebook(packed, name);
  validate_scales(packed, groups, name);
  validate_zero_points(packed, groups, name);
  validate_block_ids(packed, groups, name);
}

Codebook codebook_of(const PackedTensor& packed) {
  if (packed.scheme.zero_point) return affine_codebook(packed.scheme.bits);
  if (!packed.codebook.empty()) return make_codebook(packed.codebook, packed.scheme.bits, 1.0F);
  return make_codebook(packed.scheme.method, packed.scheme.bits);
}

TrellisLayout trellis_layout(const PackedTensor& packed) {
  return {packed.shape[0], packed.shape.inner_elements(), packed.scheme.quarters()};
}

PackedView view_of(const PackedTensor& packed, const Codebook& codebook) {
  return {.bits = packed.scheme.bits,
          .channels = packed.shape[0],
          .channel_elements = packed.shape.inner_elements(),
          .code_stride = packed.code_stride(),
          .codes = packed.codes.data(),
          .scales = packed.scales.data(),
          .scale_type = packed.scheme.scale,
          .zero_points = packed.scheme.zero_point ? packed.zero_points.data() : nullptr,
          .block_ids = packed.block_id_bits() > 0 ? packed.block_ids.data() : nullptr,
          .block_id_bits = packed.block_id_bits(),
          .block_id_stride = packed.block_id_bits() > 0 ? packed.block_id_stride() : 0,
          .values = codebook.values.data(),
          .scale_to = codebook.scale_to,
          .groups = make_group_map(packed.scheme.granularity, packed.shape),
          .trellis_quarters = packed.scheme.is_trellis() ? packed.scheme.quarters() : 0,
          .rotation = rotation_of_inputs(packed.scheme, packed.shape)};
}

void decode_reference(const PackedView& packed, int64_t channel, int64_t k, int64_t count, float* out) {
  if (packed.trellis_quarters > 0) {
    const TrellisLayout layout = packed.trellis();
    for (int64_t i = 0; i < count; ++i)
      out[i] = reconstruct(static_cast<float>(trellis_value_at(packed.codes, layout, channel, k + i)), 0.0F,
                           packed.step(channel));
    return;
  }
  const uint8_t* codes = packed.codes + channel * packed.code_stride;
  for (int64_t i = k; i < k + count; ++i) {
    const int64_t group = packed.block_ids == nullptr ? packed.groups.group(channel, i)
                                                      : read_field(packed.block_ids + channel * packed.block_id_stride,
                                                                   i, packed.block_id_bits);
    const float value = packed.values[read_field(codes, i, packed.bits)];
    const float zero_point = packed.zero_points == nullptr ? 0.0F : static_cast<float>(packed.zero_points[group]);
    *out++ = reconstruct(value, zero_point, packed.step(group));
  }
}

void dequantize(const PackedTensor& packed, TensorView<float> out) {
  expect_shape(out.shape(), packed.shape, "dequantized weights");
  const Codebook codebook = codebook_of(packed);
  const PackedView view = view_of(packed, codebook);
#pragma omp parallel for
  for (int64_t channel = 0; channel < view.channels; ++channel)
    decode_reference(view, channel, 0, view.channel_elements, out.data() + channel * view.channel_elements);
  if (const Rotation rotation = rotation_of_weights(packed.scheme, packed.shape))
    hadamard_transform(out.span(), rotation);
}

}  // namespace nibblenet
