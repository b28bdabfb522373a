#include "engine/quant/entropy_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "engine/quant/rans.h"

namespace nibblenet {
namespace {

/// Above this number, channels share one class: their histograms would take more memory than the
/// codes.
constexpr int64_t max_classified_channels = 1 << 14;
constexpr int classification_rounds = 4;
constexpr int64_t run_buffer = 1 << 12;  // symbols

/// Counts of each symbol in each channel; one row for all if there are too many channels.
struct Histograms {
  int64_t rows = 0;
  size_t symbols = 0;
  std::vector<uint64_t> counts;
  std::span<const uint64_t> row(int64_t index) const { return std::span(counts).subspan(index * symbols, symbols); }
};

Histograms count_symbols(std::span<const uint8_t> codes, const SymbolLayout& layout) {
  const int64_t channels = layout.codes.channels;
  Histograms result{.rows = channels <= max_classified_channels ? channels : 1, .symbols = size_t{1} << layout.width};
  result.counts.resize(static_cast<size_t>(result.rows) * result.symbols);
  const auto count = [&](int64_t channel, uint64_t* row) {
    std::vector<uint8_t> buffer(static_cast<size_t>(std::min(run_buffer, layout.symbols())));
    for (int64_t first = 0; first < layout.symbols(); first += run_buffer) {
      const std::span part(buffer.data(), static_cast<size_t>(std::min(run_buffer, layout.symbols() - first)));
      read_symbols(codes.data() + channel * layout.codes.stride(), layout, first, part);
      for (const uint8_t symbol : part) ++row[symbol];
    }
  };
  if (result.rows == channels) {
#pragma omp parallel for
    for (int64_t channel = 0; channel < channels; ++channel)
      count(channel, result.counts.data() + channel * static_cast<int64_t>(result.symbols));
  } else {
    for (int64_t channel = 0; channel < channels; ++channel) count(channel, result.counts.data());
  }
  return result;
}

double entropy_bits(std::span<const uint64_t> counts) {
  const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  double bits = 0;
  for (const uint64_t count : counts)
    if (count > 0) bits += static_cast<double>(count) * std::log2(total / static_cast<double>(count));
  return bits;
}

std::vector<std::vector<uint64_t>> class_counts(const Histograms& histograms, std::span<const uint8_t> class_of_row,
                                                int classes) {
  std::vector<std::vector<uint64_t>> counts(static_cast<size_t>(classes), std::vector<uint64_t>(histograms.symbols));
  for (int64_t row = 0; row < histograms.rows; ++row) {
    auto& sums = counts[class_of_row[row]];
    std::ranges::transform(sums, histograms.row(row), sums.begin(), std::plus());
  }
  return counts;
}

/// Adds half a count to every symbol: an unseen symbol costs much, but not infinitely much.
std::vector<float> symbol_bits(std::span<const uint64_t> counts) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.5 * static_cast<double>(counts.size()));
  std::vector<float> bits;
  for (const uint64_t count : counts)
    bits.push_back(static_cast<float>(std::log2(total / (static_cast<double>(count) + 0.5))));
  return bits;
}

/// Moves each channel to the class that codes it in the fewest bits.
void reassign(const Histograms& histograms, int classes, std::vector<uint8_t>& class_of_row) {
  const auto counts = class_counts(histograms, class_of_row, classes);
  std::vector<float> cost;
  for (const auto& of_class : counts) {
    const std::vector<float> bits = symbol_bits(of_class);
    cost.insert(cost.end(), bits.begin(), bits.end());
  }
#pragma omp parallel for
  for (int64_t row = 0; row < histograms.rows; ++row) {
    const auto symbols = histograms.row(row);
    float least = std::numeric_limits<float>::infinity();
    for (size_t c = 0; c < counts.size(); ++c) {
      float bits = 0;
      for (size_t symbol = 0; symbol < symbols.size(); ++symbol)
        bits += static_cast<float>(symbols[symbol]) * cost[c * histograms.symbols + symbol];
      if (bits < least) {
        least = bits;
        class_of_row[row] = static_cast<uint8_t>(c);
      }
    }
  }
}

/// Clusters channels of similar statistics: equal parts by entropy first, then k-means with bits as
/// the distance.
std::vector<uint8_t> classify(const Histograms& histograms, int classes) {
  std::vector<uint8_t> class_of_row(static_cast<size_t>(histograms.rows));
  if (classes == 1) return class_of_row;
  std::vector<double> entropy(class_of_row.size());
#pragma omp parallel for
  for (int64_t row = 0; row < histograms.rows; ++row) entropy[row] = entropy_bits(histograms.row(row));
  std::vector<int64_t> order(class_of_row.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int64_t row) { return entropy[row]; });
  for (size_t rank = 0; rank < order.size(); ++rank)
    class_of_row[order[rank]] = static_cast<uint8_t>(rank * static_cast<size_t>(classes) / order.size());
  for (int round = 0; round < classification_rounds; ++round) reassign(histograms, classes, class_of_row);
  return class_of_row;
}

double coded_bits(std::span<const uint64_t> counts, std::span<const uint32_t> frequencies, int precision) {
  double bits = 0;
  for (size_t symbol = 0; symbol < counts.size(); ++symbol)
    if (counts[symbol] > 0)
      bits += static_cast<double>(counts[symbol]) * (precision - std::log2(static_cast<double>(frequencies[symbol])));
  return bits;
}

EntropyModel make_candidate(const std::vector<std::vector<uint64_t>>& counts, std::vector<uint8_t> class_of_channel,
                            int width, int precision) {
  EntropyModel model{.width = width, .precision = precision};
  double bits = 0;
  int64_t side_bits = static_cast<int64_t>(class_of_channel.size()) * class_bits(static_cast<int>(counts.size()));
  for (const auto& of_class : counts) {
    model.frequencies.push_back(quantized_frequencies(of_class, precision));
    bits += coded_bits(of_class, model.frequencies.back(), precision);
    side_bits += table_bits(model.frequencies.back());
  }
  model.data_bytes = bits / 8;
  model.bytes = (bits + static_cast<double>(side_bits)) / 8;
  model.class_of_channel = std::move(class_of_channel);
  return model;
}

CodeRates rates_of_channels(std::span<const uint8_t> codes, const CodeLayout& layout) {
  constexpr int64_t channels_in_class = 16;  // at least: a table for fewer costs more than it saves
  const Histograms histograms = count_symbols(codes, {layout, layout.bits});
  const auto most = static_cast<uint64_t>(std::max<int64_t>(1, histograms.rows / channels_in_class));
  const auto classes = static_cast<int>(std::min<uint64_t>(max_channel_classes, std::bit_floor(most)));
  CodeRates rates{.class_of = classify(histograms, classes)};
  double sum = 0;
  for (const auto& counts : class_counts(histograms, rates.class_of, classes)) {
    rates.bits.push_back(symbol_bits(counts));
    rates.least.push_back(std::ranges::min(rates.bits.back()));
    for (size_t code = 0; code < counts.size(); ++code)
      sum += static_cast<double>(counts[code]) * static_cast<double>(rates.bits.back()[code]);
  }
  rates.mean = sum / std::max(1.0, static_cast<double>(layout.channels * layout.elements));
  rates.class_of.resize(static_cast<size_t>(layout.channels));  // all in class 0 where they share one row
  return rates;
}

}  // namespace

void read_symbols(const uint8_t* channel, const SymbolLayout& layout, int64_t first, std::span<uint8_t> out) {
  const int width = layout.width;
  const uint64_t mask = (uint64_t{1} << width) - 1;
  int64_t bits = std::min(static_cast<int64_t>(out.size()) * width, layout.channel_bits() - first * width);
  const uint8_t* in = channel + first * width / 8;
  for (size_t at = 0; at < out.size(); at += rans_lanes) {
    uint64_t fields = 0;
    if (bits >= rans_lanes * width) {
      std::memcpy(&fields, in, static_cast<size_t>(width));
    } else {
      std::memcpy(&fields, in, static_cast<size_t>((bits + 7) / 8));
      fields &= (uint64_t{1} << bits) - 1;
    }
    in += width;
    bits -= rans_lanes * width;
    for (size_t lane = 0; lane < std::min<size_t>(rans_lanes, out.size() - at); ++lane, fields >>= width)
      out[at + lane] = static_cast<uint8_t>(fields & mask);
  }
}

int class_bits(int classes) { return static_cast<int>(std::bit_width(static_cast<unsigned>(classes - 1))); }

int64_t table_bits(std::span<const uint32_t> frequencies) {
  int64_t bits = 0;
  for (const uint32_t frequency : frequencies) bits += 2 * std::bit_width(frequency + 1) - 1;
  return bits;
}

std::vector<uint32_t> quantized_frequencies(std::span<const uint64_t> counts, int precision) {
  const int64_t sum = int64_t{1} << precision;
  const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  std::vector<uint32_t> frequencies(counts.size());
  if (total == 0) {
    frequencies[0] = static_cast<uint32_t>(sum);
    return frequencies;
  }
  int64_t left = sum;
  for (size_t symbol = 0; symbol < counts.size(); ++symbol) {
    if (counts[symbol] == 0) continue;
    const double exact = static_cast<double>(counts[symbol]) * static_cast<double>(sum) / total;
    frequencies[symbol] = static_cast<uint32_t>(std::max<int64_t>(1, std::llround(exact)));
    left -= frequencies[symbol];
  }
  // Distribute the rounding remainder one by one, where it saves the most or costs the fewest bits.
  for (; left != 0; left += left > 0 ? -1 : 1) {
    const int step = left > 0 ? 1 : -1;
    size_t best = counts.size();
    double best_gain = -std::numeric_limits<double>::infinity();
    for (size_t symbol = 0; symbol < counts.size(); ++symbol) {
      const double frequency = frequencies[symbol];
      if (counts[symbol] == 0 || frequency + step < 1) continue;
      const double gain = static_cast<double>(counts[symbol]) * std::log2((frequency + step) / frequency);
      if (gain <= best_gain) continue;
      best_gain = gain;
      best = symbol;
    }
    frequencies[best] += static_cast<uint32_t>(step);
  }
  return frequencies;
}

CodeRates code_rates(std::span<const uint8_t> codes, const CodeLayout& layout) {
  CodeRates by_channel = rates_of_channels(codes, layout);
  CodeRates by_input = rates_of_channels(transposed(codes, layout), layout.transposed());
  by_input.by_input = true;
  return by_input.mean < by_channel.mean ? by_input : by_channel;
}

EntropyModel choose_model(std::span<const uint8_t> codes, const CodeLayout& layout) {
  std::vector<EntropyModel> candidates;  // the faster ones first
  const int widest = 8 / layout.bits * layout.bits;
  for (const int width : {widest, layout.bits}) {
    if (!candidates.empty() && width == widest) break;
    const Histograms histograms = count_symbols(codes, {layout, width});
    for (int classes = 1; classes <= max_channel_classes; classes *= 2) {
      if (classes > 1 && classes > histograms.rows) break;
      std::vector<uint8_t> class_of_row = classify(histograms, classes);
      const auto counts = class_counts(histograms, class_of_row, classes);
      class_of_row.resize(static_cast<size_t>(layout.channels));  // all in class 0 where they share one row
      for (const int precision : {12, 14, 16})
        candidates.push_back(make_candidate(counts, class_of_row, width, precision));
    }
  }
  const double least = std::ranges::min(candidates, {}, &EntropyModel::bytes).bytes;
  return *std::ranges::find_if(candidates, [&](const EntropyModel& each) { return each.bytes <= 1.001 * least; });
}

}  // namespace nibblenet
