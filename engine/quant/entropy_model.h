#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/quant/code_layout.h"

namespace nibblenet {

inline constexpr int max_channel_classes = 16;

/// Symbols a channel is cut into, so that no chunk of a stream has to hold a whole long one; a multiple of 8, so that
/// each run starts on a byte.
inline constexpr int64_t run_symbols = int64_t{1} << 16;

/// How a tensor is cut into symbols of `width` bits: the bits of a channel's codes, a last symbol filled up with zeros.
struct SymbolLayout {
  CodeLayout codes;
  int width = 0;

  int64_t channel_bits() const { return codes.elements * codes.bits; }
  int64_t symbols() const { return (channel_bits() + width - 1) / width; }      ///< of a channel
  int64_t runs() const { return (symbols() + run_symbols - 1) / run_symbols; }  ///< of a channel
  int64_t all_runs() const { return codes.channels * runs(); }
};

/// Symbols [first, first + out.size()) of a channel.
void read_symbols(const uint8_t* channel, const SymbolLayout& layout, int64_t first, std::span<uint8_t> out);

/// The static models of one tensor.
struct EntropyModel {
  int width = 0;      ///< bits of a symbol
  int precision = 0;  ///< the frequencies of each class sum to 2^precision
  std::vector<uint8_t> class_of_channel;
  std::vector<std::vector<uint32_t>> frequencies;  ///< by class and symbol
  double data_bytes = 0;                           ///< what the tensor's symbols will take: -sum log2(probability) / 8
  double bytes = 0;                                ///< with tables and class numbers
};

/// The model that makes the stream smallest, or a faster one within 0.1 % of it.
EntropyModel choose_model(std::span<const uint8_t> codes, const CodeLayout& layout);

/// What each code is worth in bits, by class of channels or of inputs, when codes are coded one by one: -log2 of how
/// often it occurs in the class, with half a count more of each, so that one not seen yet costs much, but not
/// everything.
struct CodeRates {
  bool by_input = false;
  std::vector<uint8_t> class_of;         ///< each channel, or each input
  std::vector<std::vector<float>> bits;  ///< by class and code
  std::vector<float> least;              ///< of a class, any code's bits
  double mean = 0;                       ///< bits a weight of the codes that were counted

  size_t class_at(int64_t channel, int64_t input) const {
    return class_of[static_cast<size_t>(by_input ? input : channel)];
  }
};
/// Classes of whichever take fewer bits.
CodeRates code_rates(std::span<const uint8_t> codes, const CodeLayout& layout);

/// Frequencies that sum to 2^precision, at least 1 for each symbol that occurs, and of all those (nearly) the ones that
/// take the fewest bits. All counts 0: everything goes to symbol 0.
std::vector<uint32_t> quantized_frequencies(std::span<const uint64_t> counts, int precision);

/// Bits of a frequency table in a stream: each frequency f as the Elias gamma code of f + 1.
int64_t table_bits(std::span<const uint32_t> frequencies);

/// The bits it takes to tell `classes` classes apart: 0 for one.
int class_bits(int classes);

}  // namespace nibblenet
