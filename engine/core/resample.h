#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace nibblenet {

/// One direction of PIL's 8-bit resize, for the output pixels inside the crop. Output i is the sum
/// over t < count[i] of weights[i * taps + t] * source[first[i] + t], in fixed point with
/// `resample_precision` bits behind the point.
struct ResampleAxis {
  int taps = 0;
  std::vector<int32_t> first;
  std::vector<int32_t> count;
  std::vector<int32_t> weights;
};

/// Bits behind the point: 32 - 8 for the pixel - 2 to spare.
inline constexpr int resample_precision = 22;

/// The pixel of a fixed-point sum that started at one half, for rounding. Weights are positive and
/// sum to 1, so only rounding can leave 0 … 255.
constexpr uint8_t resampled_byte(int32_t sum) {
  const int32_t value = sum >> resample_precision;
  return static_cast<uint8_t>(value < 255 ? value : 255);
}

/// Tables that turn images of one size into a network's input [crop, crop, 3]: resize horizontally,
/// then vertically, round to bytes after each, then look each byte up.
struct ResampleTables {
  int width = 0;
  int height = 0;
  int crop = 0;
  ResampleAxis horizontal;
  ResampleAxis vertical;
  std::array<std::array<float, 256>, 3> normalized{};  ///< normalised value of each byte, by channel
};

}  // namespace nibblenet
