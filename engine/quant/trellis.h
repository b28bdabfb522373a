#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/quant/scheme.h"

namespace nibblenet {

// Bit-shift trellis codes with computed values (QTIP, Tseng 2024, arXiv 2406.11235, sections 3.1
// and 3.2). The weights of up to 256 neighbouring output channels at one input are a sequence,
// stored as one string of bits. Weight i reads a window of 12 bits at bit floor(i R), where R is
// the rate in bits a weight; behind the string's end the window goes on at its begin (tail-biting).
// The value is computed from the window, so a decoder needs no table and may start anywhere:
//
//   bits      0 0 1 0 1 1 0 1 1 0 1 0 0 1 …           R = 2
//   weight 0  └─────────────────────┘
//   weight 1      └─────────────────────┘
//
// Neighbours share most of their bits: that is what makes a string of R bits a weight better than
// codes of R bits each.

inline constexpr int trellis_window = 12;  ///< bits that a value is computed from
inline constexpr int trellis_states = 1 << trellis_window;
inline constexpr int64_t trellis_sequence = 256;   ///< weights in a sequence
inline constexpr int64_t trellis_granule = 64;     ///< a shorter, last sequence is padded to a multiple
inline constexpr int trellis_largest_value = 126;  ///< values are integers from -126 to 126
inline constexpr float trellis_scale_to = 37.0F;   ///< root mean square of the values

/// The congruence of trellis_value(): of a dozen drawn ones, the one of least error at 2 bits.
inline constexpr uint32_t trellis_factor = 2917270597U, trellis_summand = 3731473840U;

/// The value of a window: the sum of four numbers of 6 bits that a linear congruence scrambles
/// ("1MAD" of QTIP, with bytes cut to 6 bits so that the result is a signed byte, as in
/// ik_llama.cpp's KT types). Its distribution is close to a normal one. `again`: the weight has the
/// window of the one in front of it (rates below 1) and gets another value.
constexpr int trellis_value(uint32_t window, bool again) {
  const uint32_t state = window + (again ? trellis_states : 0U);
  const uint32_t x = (state * trellis_factor + trellis_summand) & 0x3F3F3F3FU;
  return static_cast<int>((x & 255U) + (x >> 8 & 255U) + (x >> 16 & 255U) + (x >> 24)) - trellis_largest_value;
}

/// The first bit of weight i of a sequence, at `quarters` quarters of a bit a weight.
constexpr int64_t trellis_bit(int64_t i, int quarters) { return i * quarters / 4; }
/// Whether weight i has the window of weight i - 1.
constexpr bool trellis_again(int64_t i, int quarters) {
  return i > 0 && trellis_bit(i, quarters) == trellis_bit(i - 1, quarters);
}

/// Where the strings of a tensor lie: all inputs of the first 256 output channels, then those of
/// the next. Strings are whole bytes and have no gaps between them.
struct TrellisLayout {
  int64_t channels = 0;
  int64_t inputs = 0;  ///< weights behind an output channel
  int quarters = 0;    ///< of a bit, a weight

  constexpr int64_t sequences() const { return (channels + trellis_sequence - 1) / trellis_sequence; }
  /// Weights in a string of sequence s, with padding.
  constexpr int64_t length(int64_t s) const {
    const int64_t rest = channels - s * trellis_sequence;
    const int64_t padded = (rest + trellis_granule - 1) / trellis_granule * trellis_granule;
    return padded < trellis_sequence ? padded : trellis_sequence;
  }
  constexpr int64_t string_bytes(int64_t s) const { return length(s) * quarters / 32; }
  /// First byte of a string.
  constexpr int64_t offset(int64_t s, int64_t input) const {
    return s * inputs * (trellis_sequence * quarters / 32) + input * string_bytes(s);
  }
  /// All bytes, without what aligns the end.
  constexpr int64_t string_bytes() const { return channels == 0 ? 0 : offset(sequences() - 1, inputs); }
  /// All bytes, up to a multiple of 16.
  constexpr int64_t bytes() const { return (string_bytes() + 15) / 16 * 16; }
};

/// Four bytes of a string of `bytes` bytes from byte `at` on, the first one lowest; behind the end
/// come those of the begin.
constexpr uint32_t trellis_word(const uint8_t* string, int64_t bytes, int64_t at) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i, ++at) {
    while (at >= bytes) at -= bytes;
    word |= static_cast<uint32_t>(string[at]) << (8 * i);
  }
  return word;
}

/// The value of a weight, without its scale. This is the plain reference.
constexpr int trellis_value_at(const uint8_t* codes, const TrellisLayout& layout, int64_t channel, int64_t input) {
  const int64_t s = channel / trellis_sequence, i = channel % trellis_sequence;
  const int64_t bit = trellis_bit(i, layout.quarters);
  const uint32_t word = trellis_word(codes + layout.offset(s, input), layout.string_bytes(s), bit / 8);
  return trellis_value(word >> bit % 8 & (trellis_states - 1), trellis_again(i, layout.quarters));
}

/// Chooses strings by Viterbi's algorithm. One encoder serves one thread.
class TrellisEncoder {
 public:
  /// Of strings of `quarters` quarters of a bit a weight. Takes 1 MB.
  explicit TrellisEncoder(int quarters);

  /// Writes the string of least sum of (targets[i] - value_i steps[i])^2 that it finds: the best
  /// one among those that begin as the best string without tail-biting does. `length` is a multiple
  /// of 64 up to 256. Weights of step 0 are free. Writes the values, too. The result is the same on
  /// every processor. Returns the sum.
  double encode(const float* targets, const float* steps, int64_t length, uint8_t* string, int16_t* values);

 private:
  int shift_behind(int64_t i, int64_t length) const;
  void advance(int64_t i, int shift, int64_t step);
  uint32_t walk_back(uint32_t state, int shift, int64_t step) const;
  uint32_t state_at_seam(int64_t length);

  int quarters_;
  std::vector<float> target_, weight_;      ///< of each weight, in units of its step
  std::vector<float> cost_, next_, least_;  ///< by state
  std::vector<uint8_t> choices_;            ///< [steps, states]: which state stands behind
};

}  // namespace nibblenet
