#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/quant/code_layout.h"

namespace nibblenet {

/// Most classes of one tensor's model.
inline constexpr int max_channel_classes = 16;

/// Symbols of a run. Channels are cut into runs so that no chunk of a stream has to hold a long
/// channel. It is a multiple of 8, so that each run starts on a byte.
inline constexpr int64_t run_symbols = int64_t{1} << 16;

/// A tensor cut into symbols of `width` bits: the bits of a channel's codes; the last symbol is
/// padded with zeros.
struct SymbolLayout {
  CodeLayout codes;
  int width = 0;

  int64_t channel_bits() const { return codes.elements * codes.bits; }
  int64_t symbols() const { return (channel_bits() + width - 1) / width; }      ///< of a channel
  int64_t runs() const { return (symbols() + run_symbols - 1) / run_symbols; }  ///< of a channel
  int64_t all_runs() const { return codes.channels * runs(); }
};

/// Reads symbols [first, first + out.size()) of a channel.
void read_symbols(const uint8_t* channel, const SymbolLayout& layout, int64_t first, std::span<uint8_t> out);

/// The static models of one tensor.
struct EntropyModel {
  int width = 0;      ///< bits of a symbol
  int precision = 0;  ///< the frequencies of each class sum to 2^precision
  std::vector<uint8_t> class_of_channel;
  std::vector<std::vector<uint32_t>> frequencies;  ///< by class and symbol
  double data_bytes = 0;                           ///< bytes of the tensor's symbols: -sum log2(probability) / 8
  double bytes = 0;                                ///< with tables and class numbers
};

/// The model of the smallest stream, or a faster one within 0.1 % of it.
EntropyModel choose_model(std::span<const uint8_t> codes, const CodeLayout& layout);

/// Bits of each code, by class of channels or of inputs, for codes that are coded one by one: -log2
/// of its frequency in the class. Half a count is added to each code, so that a code not seen yet
/// costs much, but not infinitely much.
struct CodeRates {
  bool by_input = false;
  std::vector<uint8_t> class_of;         ///< each channel, or each input
  std::vector<std::vector<float>> bits;  ///< by class and code
  std::vector<float> least;              ///< by class, the least bits of any code
  double mean = 0;                       ///< bits a weight of the codes that were counted

  size_t class_at(int64_t channel, int64_t input) const {
    return class_of[static_cast<size_t>(by_input ? input : channel)];
  }
};
/// Rates by classes of channels or of inputs, whichever take fewer bits.
CodeRates code_rates(std::span<const uint8_t> codes, const CodeLayout& layout);

/// Frequencies that sum to 2^precision, at least 1 for each symbol that occurs, and (nearly) those
/// of the fewest bits. If all counts are 0, symbol 0 gets everything.
std::vector<uint32_t> quantized_frequencies(std::span<const uint64_t> counts, int precision);

/// Bits of a frequency table in a stream: each frequency f as the Elias gamma code of f + 1.
int64_t table_bits(std::span<const uint32_t> frequencies);

/// Bits of a class number: ceil(log2(classes)), 0 for one class.
int class_bits(int classes);

}  // namespace nibblenet
