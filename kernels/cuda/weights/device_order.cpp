#include "kernels/cuda/weights/device_order.h"

#include "engine/quant/bits.h"
#include "kernels/cuda/weights/string_block.h"
#include "kernels/cuda/weights/superblock.h"

namespace nibblenet {
namespace {

/// Reorders fields of `bits` bits, channel by channel: field k of the result was field source(k).
/// The number of bytes stays.
template <class Source>
std::vector<uint8_t> reordered(const std::vector<uint8_t>& fields, const Shape& shape, int bits, Source source) {
  std::vector<uint8_t> result(fields.size());
  const int64_t count = shape.inner_elements();
  const int64_t stride = channel_stride(count, bits);
#pragma omp parallel for schedule(static)
  for (int64_t channel = 0; channel < shape[0]; ++channel) {
    FieldWriter writer(result.data() + channel * stride);
    for (int64_t k = 0; k < count; ++k) writer.put(read_field(fields.data() + channel * stride, source(k), bits), bits);
    writer.finish();
  }
  return result;
}

std::vector<uint8_t> to_device(const std::vector<uint8_t>& fields, const Shape& shape, int bits) {
  const DeviceOrder order(shape);
  if (order.taps == 1 || fields.empty()) return fields;
  return reordered(fields, shape, bits, order);
}

std::vector<uint8_t> from_device(const std::vector<uint8_t>& fields, const Shape& shape, int bits) {
  const DeviceOrder order(shape);
  if (order.taps == 1 || fields.empty()) return fields;
  return reordered(fields, shape, bits, [&](int64_t k) { return order.inverse(k); });
}

/// Codes in device order as superblocks, without the unused code.
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

void expect_suitable(const PackedTensor& packed, WeightLayout layout) {
  const bool suits = layout == WeightLayout::channels ||
                     (layout == WeightLayout::strings
                          ? packed.scheme.is_trellis() && suits_string_blocks(packed.shape.inner_elements())
                          : suits_superblocks(packed));
  if (!suits) fail<Error>("no such layout of {}, {}", to_string(packed.shape), to_string(packed.scheme));
}

}  // namespace

std::vector<uint8_t> to_device_codes(const PackedTensor& packed, WeightLayout layout) {
  expect_suitable(packed, layout);
  if (layout == WeightLayout::strings) return to_string_blocks(packed.codes, packed.shape, packed.scheme.quarters());
  if (packed.scheme.is_trellis()) return packed.codes;
  std::vector<uint8_t> codes = to_device(packed.codes, packed.shape, packed.scheme.bits);
  if (layout == WeightLayout::channels) return codes;
  return superblocks_of(std::move(codes), packed);
}

std::vector<uint8_t> to_device_block_ids(const PackedTensor& packed) {
  return to_device(packed.block_ids, packed.shape, packed.block_id_bits());
}

std::vector<uint8_t> from_device_codes(const PackedTensor& packed, WeightLayout layout) {
  expect_suitable(packed, layout);
  if (layout == WeightLayout::strings) return from_string_blocks(packed.codes, packed.shape, packed.scheme.quarters());
  if (packed.scheme.is_trellis()) return packed.codes;
  const Shape& shape = packed.shape;
  const int bits = packed.scheme.bits;
  if (layout == WeightLayout::channels) return from_device(packed.codes, shape, bits);
  return from_device(from_superblocks(packed.codes, shape[0], shape.inner_elements(), bits), shape, bits);
}

std::vector<uint8_t> from_device_block_ids(const PackedTensor& packed) {
  return from_device(packed.block_ids, packed.shape, packed.block_id_bits());
}

}  // namespace nibblenet
