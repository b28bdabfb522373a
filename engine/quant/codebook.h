#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>

#include "engine/quant/scheme.h"

namespace nibblenet {

/// A codebook: the values of codes, and the thresholds that map a real number to its code.
///
/// A weight is reconstructed as  value[code] * (scale / scale_to):  `scale` is what is stored for
/// the group (its absolute or signed maximum), `scale_to` the codebook value that maximum is mapped
/// to (1 for most, 2^(n-1)-1 for linear, 448 for FP8 E4M3). Linear's values are integers and FP8's
/// codes the OCP bit patterns, so a decoder may compute them instead of looking them up and gets
/// the same bits.
struct Codebook {
  int bits = 0;
  float scale_to = 1.0F;
  std::array<float, 256> values{};  ///< by code; unused codes hold 0
  int count = 0;                    ///< codes in use

  /// Ascending values of the codes in use, their codes, and the decision points between neighbours:
  /// x maps to ordered_codes[i] for threshold[i-1] < x < threshold[i]; at a threshold itself the
  /// upper neighbour is taken if tie_up is set. A midpoint that is no float is rounded, and tie_up
  /// is set to the side of the exact midpoint, so every decision is exact. A true tie goes to the
  /// even code for linear and FP8, else to the lower one. Unused thresholds are +Inf.
  std::array<uint8_t, 256> ordered_codes{};
  std::array<float, 255> thresholds{};
  std::array<bool, 255> tie_up{};
  uint8_t zero_code = 0;  ///< code of 0, or of the value nearest to 0
};

/// Builds the codebook of a method at a width, in float32. Throws UsageError for an unsupported
/// width and for methods whose values are trained. Definitions: FP8 after OCP OFP8 1.0, dynamic
/// tree after Dettmers 2015 (arXiv 1511.04561) in closed form, NF4 after QLoRA (arXiv 2305.14314),
/// FP4 after OCP MX 1.0 (E2M1).
Codebook make_codebook(Method method, int bits);

/// Builds a trained codebook from explicit ascending values; codes are their ranks. Requires: 1 to
/// 2^bits finite values; equal ones are allowed. Throws UsageError otherwise.
Codebook make_codebook(std::span<const float> values, int bits, float scale_to);

/// Nearest code of x; the outermost one beyond the ends. Requires: x is not NaN (weights are
/// checked before).
constexpr uint8_t encode(const Codebook& codebook, float x) {
  // Counts the thresholds below x, the largest power of two first. Every x takes the same number of
  // steps, without bounds checks: unused thresholds are above everything.
  uint32_t below = 0;
  for (uint32_t step = std::bit_floor(static_cast<uint32_t>(codebook.count - 1)); step != 0; step >>= 1) {
    const uint32_t candidate = below + step - 1;
    const float threshold = codebook.thresholds[candidate];
    const bool above = (x > threshold) | ((x == threshold) & codebook.tie_up[candidate]);
    below += above ? step : 0;
  }
  return codebook.ordered_codes[below];
}

}  // namespace nibblenet
