#include "engine/core/fold.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace nibblenet {
namespace {

constexpr int64_t most_patterns = 256;

/// [R, taps]: the share of each source pixel in each tap of the convolution, in units of
/// 2^-resample_precision; and which taps lie inside the enlarged image.
struct Pattern {
  std::vector<int32_t> weights;
  std::vector<bool> inside;
  // NOLINTNEXTLINE(modernize-use-nullptr): the 0 that it compares with is no pointer
  friend auto operator<=>(const Pattern&, const Pattern&) = default;
};

struct PatternedAxis {
  FoldedAxis axis;
  std::vector<Pattern> patterns;
};

/// One direction of a convolution of the enlarged image.
struct Window1d {
  int64_t size, stride, padding;
};

struct SourceRange {
  int32_t begin, end;
};

/// Source pixels under the window of output p; empty (0, 0) if all of it lies in the padding.
SourceRange source_range(const ResampleAxis& axis, Window1d window, int64_t p) {
  const auto size = static_cast<int64_t>(axis.first.size());
  SourceRange range{0, 0};
  for (int64_t r = 0; r < window.size; ++r) {
    const int64_t i = p * window.stride - window.padding + r;
    if (i < 0 || i >= size) continue;
    const auto at = static_cast<size_t>(i);
    const int32_t end = axis.first[at] + axis.count[at];
    range = range.end == 0 ? SourceRange{axis.first[at], end}
                           : SourceRange{std::min(range.begin, axis.first[at]), std::max(range.end, end)};
  }
  return range;
}

Pattern pattern_at(const ResampleAxis& axis, Window1d window, int64_t p, int32_t first, int taps) {
  const auto size = static_cast<int64_t>(axis.first.size());
  Pattern pattern{std::vector<int32_t>(static_cast<size_t>(window.size * taps)),
                  std::vector<bool>(static_cast<size_t>(window.size))};
  for (int64_t r = 0; r < window.size; ++r) {
    const int64_t i = p * window.stride - window.padding + r;
    if (i < 0 || i >= size) continue;
    pattern.inside[static_cast<size_t>(r)] = true;
    const auto at = static_cast<size_t>(i);
    for (int32_t t = 0; t < axis.count[at]; ++t)
      pattern.weights[static_cast<size_t>(r * taps + axis.first[at] - first + t)] +=
          axis.weights[at * static_cast<size_t>(axis.taps) + static_cast<size_t>(t)];
  }
  return pattern;
}

PatternedAxis make_patterns(const ResampleAxis& resample, Window1d window, int source) {
  const auto size = static_cast<int64_t>(resample.first.size());
  if (size + 2 * window.padding < window.size)
    fail<ShapeError>("a window of {} does not fit {} pixels", window.size, size);
  const int64_t outputs = (size + 2 * window.padding - window.size) / window.stride + 1;
  PatternedAxis result;
  FoldedAxis& axis = result.axis;
  std::vector<SourceRange> ranges;
  for (int64_t p = 0; p < outputs; ++p) {
    ranges.push_back(source_range(resample, window, p));
    axis.taps = std::max(axis.taps, ranges.back().end - ranges.back().begin);
  }
  std::map<Pattern, int32_t> known;
  for (int64_t p = 0; p < outputs; ++p) {
    const int32_t first = std::min(ranges[static_cast<size_t>(p)].begin, source - axis.taps);
    Pattern pattern = pattern_at(resample, window, p, first, axis.taps);
    const auto [found, fresh] = known.try_emplace(pattern, axis.patterns);
    if (fresh) {
      result.patterns.push_back(std::move(pattern));
      ++axis.patterns;
    }
    axis.first.push_back(first);
    axis.pattern.push_back(found->second);
  }
  return result;
}

/// One channel of one filter folded by a pair of patterns: sums over the convolution's taps (r, s).
struct FoldedChannel {
  std::vector<double> weights;  ///< [vertical taps, horizontal taps], of bytes
  double inside = 0;            ///< sum of the weights that do not lie in the padding
};

FoldedChannel fold_channel(const float* w, int64_t size, const Pattern& down, int down_taps, const Pattern& across,
                           int across_taps) {
  constexpr double unit = 1.0 / (1 << resample_precision);
  FoldedChannel folded;
  folded.weights.assign(static_cast<size_t>(down_taps) * static_cast<size_t>(across_taps), 0.0);
  std::vector<double> row(static_cast<size_t>(across_taps));
  for (int64_t r = 0; r < size; ++r) {
    if (!down.inside[static_cast<size_t>(r)]) continue;
    std::ranges::fill(row, 0.0);
    for (int64_t s = 0; s < size; ++s) {
      if (!across.inside[static_cast<size_t>(s)]) continue;
      const double weight = static_cast<double>(w[r * size + s]);
      folded.inside += weight;
      for (int b = 0; b < across_taps; ++b)
        row[static_cast<size_t>(b)] += weight * across.weights[static_cast<size_t>(s * across_taps + b)] * unit;
    }
    for (int a = 0; a < down_taps; ++a)
      for (int b = 0; b < across_taps; ++b) {
        const int tap = a * across_taps + b;
        folded.weights[static_cast<size_t>(tap)] +=
            row[static_cast<size_t>(b)] * down.weights[static_cast<size_t>(r * down_taps + a)] * unit;
      }
  }
  return folded;
}

/// A channel's normalisation as offset + slope * byte.
struct Normalisation {
  double offset, slope;
  explicit Normalisation(const std::array<float, 256>& table)
      : offset(static_cast<double>(table[0])),
        slope((static_cast<double>(table[255]) - static_cast<double>(table[0])) / 255) {}
  int32_t center() const { return std::clamp(static_cast<int32_t>(std::lround(-offset / slope)), 0, 255); }
};

/// Filters and biases of pattern pair `s`.
void fold_pattern(FoldedConvolution& folded, int64_t s, const Pattern& down, const Pattern& across,
                  TensorView<const float> w, TensorView<const float> bias, const ResampleTables& tables) {
  const int64_t channels = w.size(0), size = w.size(2);
  const int64_t taps = int64_t{folded.vertical.taps} * folded.horizontal.taps;
  float* filters = folded.filters.data() + s * folded.length() * channels;
  for (int64_t k = 0; k < channels; ++k) {
    auto constant = static_cast<double>(bias[k]);
    for (int64_t c = 0; c < 3; ++c) {
      const Normalisation normalise(tables.normalized[static_cast<size_t>(c)]);
      const FoldedChannel channel = fold_channel(w.data() + (k * 3 + c) * size * size, size, down, folded.vertical.taps,
                                                 across, folded.horizontal.taps);
      constant += normalise.offset * channel.inside;
      for (int64_t t = 0; t < taps; ++t) {
        const double weight = normalise.slope * channel.weights[static_cast<size_t>(t)];
        filters[(t * 3 + c) * channels + k] = static_cast<float>(weight);
        constant += weight * folded.center[static_cast<size_t>(c)];
      }
    }
    folded.biases[static_cast<size_t>(s * channels + k)] = static_cast<float>(constant);
  }
}

}  // namespace

FoldedConvolution fold_convolution(TensorView<const float> w, TensorView<const float> bias, int64_t stride,
                                   int64_t padding, const ResampleTables& tables) {
  if (w.shape().rank() != 4 || w.size(1) != 3 || w.size(2) != w.size(3) || bias.shape() != Shape{w.size(0)})
    fail<ShapeError>("filters {} with bias {} cannot be folded; expected K x 3 x R x R and K", to_string(w.shape()),
                     to_string(bias.shape()));
  const Window1d window{w.size(2), stride, padding};
  PatternedAxis vertical = make_patterns(tables.vertical, window, tables.height);
  PatternedAxis horizontal = make_patterns(tables.horizontal, window, tables.width);
  FoldedConvolution folded{.width = tables.width, .height = tables.height, .channels_out = w.size(0)};
  folded.vertical = std::move(vertical.axis);
  folded.horizontal = std::move(horizontal.axis);
  const int64_t taps = int64_t{folded.vertical.taps} * folded.horizontal.taps;
  if (folded.patterns() > most_patterns || taps >= window.size * window.size)
    fail<UsageError>(
        "folding the first convolution into the resize of {} x {} images to {} pixels saves nothing ({} patterns of {} "
        "source pixels); leave it out",
        tables.width, tables.height, tables.crop, folded.patterns(), taps);
  for (size_t c = 0; c < 3; ++c) folded.center[c] = Normalisation(tables.normalized[c]).center();
  folded.filters.resize(static_cast<size_t>(folded.patterns() * folded.length() * folded.channels_out));
  folded.biases.resize(static_cast<size_t>(folded.patterns() * folded.channels_out));
  for (int64_t v = 0; v < folded.vertical.patterns; ++v)
    for (int64_t h = 0; h < folded.horizontal.patterns; ++h)
      fold_pattern(folded, v * folded.horizontal.patterns + h, vertical.patterns[static_cast<size_t>(v)],
                   horizontal.patterns[static_cast<size_t>(h)], w, bias, tables);
  return folded;
}

}  // namespace nibblenet
