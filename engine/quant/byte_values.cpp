#include "engine/quant/byte_values.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "engine/quant/bits.h"

namespace nibblenet {
namespace {

/// How often each code occurs in a sample of the channels; at least once, since others may hold it.
std::array<int64_t, 256> histogram(const PackedView& packed) {
  constexpr int64_t sampled_channels = 64;
  std::array<int64_t, 256> counts{};
  counts.fill(1);
  const int64_t step = std::max<int64_t>(1, packed.channels / sampled_channels);
  for (int64_t channel = 0; channel < packed.channels; channel += step)
    for (int64_t k = 0; k < packed.channel_elements; ++k)
      ++counts[read_field(packed.codes + channel * packed.code_stride, k, packed.bits)];
  return counts;
}

int8_t byte_of(float value, float unit) {
  return static_cast<int8_t>(std::clamp(std::nearbyint(value / unit), -float{largest_byte}, float{largest_byte}));
}

/// What rounding to multiples of a unit does to weights.
struct Rounding {
  double error = 0;  ///< ByteValues::error
  double cost = 0;   ///< by which units are compared
};

/// `counts`: how often each value occurs.
Rounding rounding_of(std::span<const float> values, const std::array<int64_t, 256>& counts, float unit) {
  // All weights of a code are wrong by the same amount. Behind a ReLU inputs are positive, and in a
  // sum of n products the mean error counts n times as much as its spread.
  constexpr double products_of_a_sum = 1000;
  double squares = 0, mean = 0, norm = 0, weights = 0;
  for (size_t code = 0; code < values.size(); ++code) {
    const auto value = static_cast<double>(values[code]);
    const auto count = static_cast<double>(counts[code]);
    const double error = static_cast<double>(unit) * byte_of(values[code], unit) - value;
    squares += count * error * error;
    mean += count * error;
    norm += count * value * value;
    weights += count;
  }
  if (norm == 0) return {};
  return {.error = std::sqrt(squares / norm), .cost = squares + products_of_a_sum * mean * mean / weights};
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
  if (!whole) {
    const std::array<int64_t, 256> counts = histogram(packed);
    Rounding least{.cost = std::numeric_limits<double>::infinity()};
    for (int quarter = 4 * 127; quarter > 4 * 64; --quarter) {
      const float unit = 4.0F * largest / static_cast<float>(quarter);
      if (!std::isnormal(unit)) break;
      const Rounding rounding = rounding_of(values, counts, unit);
      if (!(rounding.cost < least.cost)) continue;
      least = rounding;
      result.unit = unit;
    }
    result.error = least.error;
  }
  int divisor = 0;
  for (size_t code = 0; code < values.size(); ++code) {
    result.bytes[code] = byte_of(values[code], result.unit);
    divisor = std::gcd(divisor, int{result.bytes[code]});
  }
  if (divisor <= 1) return result;
  for (int8_t& byte : result.bytes) byte = static_cast<int8_t>(byte / divisor);
  result.unit *= static_cast<float>(divisor);
  return result;
}

bool may_sum_columns(const Shape& shape) {
  return shape.rank() == 4 && (shape[3] == 3 || shape[3] == 5) && shape[1] % 4 == 0;
}

bool are_summands(const PackedView& packed, const ByteValues& values) {
  const int largest_zero = packed.zero_points != nullptr ? (1 << packed.bits) - 1 : 0;
  return std::ranges::all_of(std::span(values.bytes).first(size_t{1} << packed.bits), [&](int8_t byte) {
    return byte <= largest_summand && byte - largest_zero >= -largest_summand;
  });
}

std::string why_not_bytes(const PackedView& packed) {
  if (packed.trellis_quarters > 0) return "its codes are trellis strings";
  if (packed.rotation) return "its inputs are rotated";
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
