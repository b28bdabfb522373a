#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace nibblenet {

/// Interleaved rANS: eight 64-bit states share one sequence of 32-bit words. A state x in [2^31,
/// 2^63) holds the information not yet written. A symbol of frequency f (of 2^precision), which
/// starts at s in the cumulated table, takes it to
///   x' = floor(x / f) * 2^precision + s + x mod f
/// If x' would leave the interval, the low word is moved out first. Decoding undoes the steps in
/// reverse order: encoding runs from the last symbol to the first, and words are written from back
/// to front. Source: Duda 2013, arXiv 1311.2540, section 3; the interleaving is Giesen 2014, arXiv
/// 1402.3392.
inline constexpr int rans_lanes = 8;
inline constexpr uint64_t rans_low = uint64_t{1} << 31;
inline constexpr int rans_word = 4;                          ///< bytes
inline constexpr int64_t rans_state_bytes = 8 * rans_lanes;  ///< the states in front of a chunk's words
inline constexpr int min_rans_precision = 8;
inline constexpr int max_rans_precision = 16;

/// The slots of a symbol among the 2^precision.
struct RansSlots {
  uint32_t frequency = 0;
  uint32_t start = 0;
};

/// Frequencies of one model, cumulated for encoding.
class RansEncoderModel {
 public:
  /// Cumulates up to 256 frequencies that sum to 2^precision.
  RansEncoderModel(std::span<const uint32_t> frequencies, int precision) : precision_(precision) {
    uint32_t start = 0;
    for (size_t symbol = 0; symbol < frequencies.size(); ++symbol) {
      slots_[symbol] = {frequencies[symbol], start};
      start += frequencies[symbol];
    }
  }
  RansSlots operator[](uint32_t symbol) const { return slots_[symbol]; }
  int precision() const { return precision_; }

 private:
  std::array<RansSlots, 256> slots_{};
  int precision_;
};

/// Frequencies cumulated for decoding, with the symbol of each slot: 2^precision + 2,048 bytes.
class RansDecoderModel {
 public:
  /// Cumulates frequencies that sum to 2^precision.
  RansDecoderModel(std::span<const uint32_t> frequencies, int precision)
      : precision_(precision), symbols_(size_t{1} << precision) {
    uint32_t start = 0;
    for (size_t symbol = 0; symbol < frequencies.size(); ++symbol) {
      slots_[symbol] = {frequencies[symbol], start};
      std::memset(symbols_.data() + start, static_cast<int>(symbol), frequencies[symbol]);
      start += frequencies[symbol];
    }
  }

  /// Decodes the next symbol of a state. The state may need a word afterwards.
  uint32_t take(uint64_t& state) const {
    const uint64_t slot = state & ((uint64_t{1} << precision_) - 1);
    const uint32_t symbol = symbols_[slot];
    const RansSlots at = slots_[symbol];
    state = at.frequency * (state >> precision_) + slot - at.start;
    return symbol;
  }

 private:
  std::array<RansSlots, 256> slots_{};
  int precision_;
  std::vector<uint8_t> symbols_;
};

/// Encodes from the last symbol to the first.
class RansEncoder {
 public:
  RansEncoder() { states_.fill(rans_low); }

  /// Encodes a symbol in a lane's state.
  void put(int lane, uint32_t symbol, const RansEncoderModel& model) {
    uint64_t& x = states_[static_cast<size_t>(lane)];
    const RansSlots at = model[symbol];
    if (x >= static_cast<uint64_t>(at.frequency) << (63 - model.precision())) {
      reversed_words_.push_back(static_cast<uint32_t>(x));
      x >>= 32;
    }
    x = ((x / at.frequency) << model.precision()) + at.start + x % at.frequency;
  }

  /// The states, then the words in decoding order.
  std::vector<uint8_t> finish() const {
    std::vector<uint8_t> bytes(static_cast<size_t>(rans_state_bytes) + reversed_words_.size() * rans_word);
    std::memcpy(bytes.data(), states_.data(), rans_state_bytes);
    uint8_t* out = bytes.data() + rans_state_bytes;
    for (auto word = reversed_words_.rbegin(); word != reversed_words_.rend(); ++word, out += rans_word)
      std::memcpy(out, &*word, rans_word);
    return bytes;
  }

 private:
  std::array<uint64_t, rans_lanes> states_;
  std::vector<uint32_t> reversed_words_;
};

/// Decodes one chunk. It never reads outside the chunk: missing data of a damaged chunk reads as
/// zero, and complete() returns false.
class RansDecoder {
 public:
  /// Requires: a chunk of at least rans_state_bytes.
  explicit RansDecoder(std::span<const uint8_t> chunk)
      : next_(chunk.data() + rans_state_bytes), end_(chunk.data() + chunk.size()) {
    std::memcpy(states_.data(), chunk.data(), rans_state_bytes);
  }

  /// Decodes `count` symbols: one of each of the first lanes.
  void take(const RansDecoderModel& model, int count, uint8_t* symbols) {
    for (int lane = 0; lane < count; ++lane) {
      uint64_t& x = states_[static_cast<size_t>(lane)];
      symbols[lane] = static_cast<uint8_t>(model.take(x));
      if (x >= rans_low) continue;
      uint32_t word = 0;
      if (end_ - next_ >= rans_word) {
        std::memcpy(&word, next_, rans_word);
        next_ += rans_word;
      } else {
        short_ = true;
      }
      x = x << 32 | word;
    }
  }

  /// Decodes `blocks` blocks of one symbol of every lane. `emit` gets each block's symbols in
  /// order, as one number of 8 * width bits. The loop has no branches: a lane that needs no word
  /// reads one and drops it.
  template <int width, class Emit>
  void take_blocks(const RansDecoderModel& model, int64_t blocks, Emit&& emit) {
    std::array<uint64_t, rans_lanes> states = states_;
    const uint8_t* next = next_;
    for (; blocks > 0 && end_ - next >= rans_lanes * rans_word; --blocks) {
      uint64_t fields = 0;
#pragma GCC unroll 8
      for (size_t lane = 0; lane < rans_lanes; ++lane) {
        uint64_t x = states[lane];
        fields |= static_cast<uint64_t>(model.take(x)) << (lane * width);
        uint32_t word = 0;
        std::memcpy(&word, next, rans_word);
        const bool low = x < rans_low;
        states[lane] = low ? x << 32 | word : x;
        next += low ? rans_word : 0;
      }
      emit(fields);
    }
    states_ = states;
    next_ = next;
    for (; blocks > 0; --blocks) {
      std::array<uint8_t, rans_lanes> symbols{};
      take(model, rans_lanes, symbols.data());
      uint64_t fields = 0;
      for (size_t lane = 0; lane < rans_lanes; ++lane) fields |= static_cast<uint64_t>(symbols[lane]) << (lane * width);
      emit(fields);
    }
  }

  /// Whether all words were there and used, and the states are back at encoding's start. True of
  /// every intact chunk.
  bool complete() const {
    for (const uint64_t state : states_)
      if (state != rans_low) return false;
    return !short_ && next_ == end_;
  }

 private:
  std::array<uint64_t, rans_lanes> states_;
  const uint8_t* next_;
  const uint8_t* end_;
  bool short_ = false;
};

}  // namespace nibblenet
