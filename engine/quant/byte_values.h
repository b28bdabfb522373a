#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// Signed bytes in place of a packed tensor's values, for products of 8-bit integers:
///   weight(channel, k) = (bytes[code] - zero point) * unit * step(channel)
/// Values that are whole numbers, as linear codes stand for, are kept. Others are rounded to
/// multiples of the unit, between a 127th and a 64th of the largest, that changes sums least. Bytes
/// have no common divisor: the unit has it.
struct ByteValues {
  std::array<int8_t, 256> bytes{};  ///< by code; the codes themselves for zero-point schemes
  float unit = 1.0F;
  /// ||rounded - weights|| / ||weights||, over at most 64 output channels, divided by their steps.
  double error = 0;
};

/// The largest ByteValues::error of weights that are multiplied as bytes.
inline constexpr double largest_byte_error = 0.01;

/// The largest value of a signed byte whose negative is one, too.
inline constexpr int largest_byte = 127;

/// The largest value whose sums of three fit a signed byte.
inline constexpr int largest_summand = 42;

/// Whether products of bytes may multiply sums of values of neighbouring columns, by minimal
/// filtering (kernels/cpu/minimal_filtering.h): those of filters [K, C, R, 3] and [K, C, R, 5]
/// whose input channels are whole groups of 4.
bool may_sum_columns(const Shape& shape);

/// The most weights of an output channel whose products with bytes a 32-bit sum is sure to hold.
inline constexpr int64_t most_byte_products = 65'536;

/// Whether each output channel has one step, and no code depends on its neighbours.
bool has_one_step_a_channel(const PackedView& packed);

/// The bytes of a tensor for which why_not_bytes() has no reason but the error.
ByteValues byte_values(const PackedView& packed);

/// Whether no value that a code may stand for is above largest_summand.
bool are_summands(const PackedView& packed, const ByteValues& values);

/// Why weights cannot be multiplied as signed bytes, in a few words: "its scales change along a
/// channel"; empty where they can.
std::string why_not_bytes(const PackedView& packed);

}  // namespace nibblenet
