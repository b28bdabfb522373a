#include "engine/quant/byte_values.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "engine/quant/bits.h"

namespace nibblenet {
namespace {

constexpr float largest_byte = 127.0F;

/// How often each code occurs in a sample of the channels.
std::array<int64_t, 256> histogram(const PackedView& packed) {
  constexpr int64_t sampled_channels = 64;
  std::array<int64_t, 256> counts{};
  const int64_t step = std::max<int64_t>(1, packed.channels / sampled_channels);
  for (int64_t channel = 0; channel < packed.channels; channel += step)
    for (int64_t k = 0; k < packed.channel_elements; ++k)
      ++counts[read_field(packed.codes + channel * packed.code_stride, k, packed.bits)];
  return counts;
}

double rounding_error(const PackedView& packed, const ByteValues& values) {
  const std::array<int64_t, 256> counts = histogram(packed);
  double error = 0, norm = 0;
  for (size_t code = 0; code < counts.size(); ++code) {
    const auto value = static_cast<double>(packed.values[code]);
    const auto count = static_cast<double>(counts[code]);
    error += count * std::pow(static_cast<double>(values.unit) * values.bytes[code] - value, 2);
    norm += count * value * value;
  }
  return norm > 0 ? std::sqrt(error / norm) : 0.0;
}

}  // namespace

bool has_one_step_a_channel(const PackedView& packed) {
  return packed.trellis_quarters == 0 && packed.block_ids == nullptr && packed.groups.run(0) >= packed.channel_elements;
}

ByteValues byte_values(const PackedView& packed) {
  ByteValues result;
  const std::span values(packed.values, size_t{1} << packed.bits);
  const auto largest = std::abs(*std::ranges::max_element(values, {}, [](float value) { return std::abs(value); }));
  const bool whole = largest <= largest_byte &&
                     std::ranges::all_of(values, [](float value) { return value == std::nearbyint(value); });
  if (!whole) result.unit = largest / largest_byte;
  for (size_t code = 0; code < values.size(); ++code)
    result.bytes[code] =
        static_cast<int8_t>(std::clamp(std::nearbyint(values[code] / result.unit), -largest_byte, largest_byte));
  if (!whole) result.error = rounding_error(packed, result);
  return result;
}

std::string why_not_bytes(const PackedView& packed) {
  if (packed.trellis_quarters > 0) return "its codes are trellis strings";
  if (packed.block_ids != nullptr) return "its scales belong to sorted blocks";
  if (!has_one_step_a_channel(packed)) return "its scales change along a channel";
  if (packed.zero_points != nullptr && packed.bits == 8) return "8 bits with a zero point do not fit a signed byte";
  if (packed.channel_elements > most_byte_products)
    return fmt::format("a 32-bit sum holds {} products of bytes", most_byte_products);
  if (const double error = byte_values(packed).error; error > largest_byte_error)
    return fmt::format("rounding its values to bytes costs {:.1f} %", 100 * error);
  return "";
}

}  // namespace nibblenet
