#include "engine/quant/value_check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "engine/core/half.h"
#include "engine/quant/quantizer.h"
#include "engine/quant/size.h"

namespace nibblenet {
namespace {

/// Ascending bits of the different values, with -0 taken for 0.
using Values = std::vector<uint32_t>;

void keep_different(Values& values) {
  std::ranges::sort(values);
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

Values values_of(std::span<const float> weights) {
  Values values(weights.size());
  std::ranges::transform(weights, values.begin(), [](float weight) { return std::bit_cast<uint32_t>(weight + 0.0F); });
  keep_different(values);
  return values;
}

int index_bits(size_t values) { return static_cast<int>(std::bit_width(values - 1)); }

/// The tables of groups of `elements` weights, the last one perhaps shorter, from their values.
struct Counter {
  ValueTables tables;

  void add(const Values& values, int64_t elements) {
    ++tables.groups;
    tables.most = std::max(tables.most, static_cast<int64_t>(values.size()));
    tables.bits = index_bits(static_cast<size_t>(tables.most));
    tables.bytes +=
        static_cast<double>(elements) * index_bits(values.size()) / 8 + 4.0 * static_cast<double>(values.size());
  }
};

/// Fills the three tables. The values of a channel are collected from its rows, the tensor's from
/// its channels: of rounded weights, few are left to sort. Returns the tensor's. Calls on_weights
/// with the number of counted weights, once in a while.
template <class OnWeights>
std::vector<float> count_values(ValueCheck& check, TensorView<const float> weights, OnWeights on_weights) {
  const auto channels = static_cast<size_t>(weights.size(0));
  const int64_t in_channel = weights.shape().inner_elements();
  const int64_t in_row = weights.shape().sizes().back();
  std::vector<Values> of_channel(channels);
  std::vector<Counter> rows(channels);
  constexpr int64_t once_in = 1 << 20;  // weights
  const auto together = static_cast<size_t>(1 + once_in / in_channel);
  for (size_t begin = 0; begin < channels; begin += together) {
    const size_t end = std::min(begin + together, channels);
    on_weights(static_cast<int64_t>(begin) * in_channel);
#pragma omp parallel for schedule(dynamic)
    for (size_t c = begin; c < end; ++c) {
      const std::span<const float> channel = weights.slice(static_cast<int64_t>(c), 1).span();
      for (int64_t first = 0; first < in_channel; first += in_row) {
        const Values row = values_of(channel.subspan(static_cast<size_t>(first), static_cast<size_t>(in_row)));
        rows[c].add(row, in_row);
        of_channel[c].insert(of_channel[c].end(), row.begin(), row.end());
      }
      keep_different(of_channel[c]);
    }
  }
  Counter channel, tensor;
  Values all;
  for (size_t c = 0; c < channels; ++c) {
    check.row.groups += rows[c].tables.groups;
    check.row.most = std::max(check.row.most, rows[c].tables.most);
    check.row.bytes += rows[c].tables.bytes;
    channel.add(of_channel[c], in_channel);
    all.insert(all.end(), of_channel[c].begin(), of_channel[c].end());
    of_channel[c] = {};
  }
  check.row.bits = index_bits(static_cast<size_t>(check.row.most));
  check.channel = channel.tables;
  keep_different(all);
  tensor.add(all, weights.elements());
  check.tensor = tensor.tables;
  std::vector<float> values(all.size());
  std::ranges::transform(all, values.begin(), [](uint32_t bits) { return std::bit_cast<float>(bits); });
  return values;
}

/// The spacing of values that are whole multiples of one step, and the least and largest multiple;
/// step 0 where they are none of at most 8 bits.
struct Grid {
  double step = 0;
  int64_t least = 0;
  int64_t largest = 0;
};

Grid grid_of(std::span<const float> values) {
  std::vector<float> sorted(values.begin(), values.end());
  sorted.push_back(0);
  std::ranges::sort(sorted);
  float gap = 0;
  for (size_t i = 1; i < sorted.size(); ++i) {
    const float difference = sorted[i] - sorted[i - 1];
    // Multiples are rounded: a gap of some units in the last place of the larger one is none.
    const float noise = std::max(std::fabs(sorted[i]), std::fabs(sorted[i - 1])) * 1e-6F;
    if (difference > noise && (gap == 0 || difference < gap)) gap = difference;
  }
  if (gap == 0) return {};
  const float largest = -sorted.front() > sorted.back() ? sorted.front() : sorted.back();
  const double multiple = std::round(static_cast<double>(largest) / gap);
  if (std::fabs(multiple) > 255) return {};
  const double step = largest / multiple;
  return {step, std::llround(sorted.front() / step), std::llround(sorted.back() / step)};
}

/// The scale and zero point of a group.
struct Guess {
  float scale = 0;
  float zero_point = 0;
};

/// Looks for scales by which a scheme decodes to given values.
class Reproduction {
 public:
  explicit Reproduction(const Scheme& scheme) : scheme_(scheme), codebook_(codebook_of({.scheme = scheme})) {}

  /// A scale and zero point that give every value of a group; nothing where none is found.
  std::optional<Guess> find(std::span<const float> values) const {
    const Guess start = by_extremes(values);
    if (const auto found = near(start, values)) return found;
    if (scheme_.method != Method::linear) return std::nullopt;
    const Grid grid = grid_of(values);
    const int64_t codes = int64_t{1} << scheme_.bits;
    if (grid.step == 0 || (scheme_.zero_point && grid.largest - grid.least >= codes)) return std::nullopt;
    return near(
        {static_cast<float>(codebook_.scale_to * grid.step), scheme_.zero_point ? static_cast<float>(-grid.least) : 0},
        values);
  }

 private:
  Guess by_extremes(std::span<const float> values) const {
    const float low = std::min(0.0F, *std::ranges::min_element(values));
    const float high = std::max(0.0F, *std::ranges::max_element(values));
    if (scheme_.zero_point) {
      const float scale = stored(high - low);
      return {scale, scale > 0 ? std::nearbyint(-low / (scale / codebook_.scale_to)) : 0};
    }
    const bool negative = scheme_.sign == ScaleSign::signed_max && -low > high;
    return {stored(negative ? low : std::max(-low, high)), 0};
  }

  /// A neighbour within two units in the last place counts: others divide where we multiply.
  std::optional<Guess> near(const Guess& start, std::span<const float> values) const {
    for (const int ulps : {0, 1, -1, 2, -2}) {
      Guess guess = start;
      for (int i = 0; i < std::abs(ulps); ++i)
        guess.scale = std::nextafter(guess.scale, ulps > 0 ? std::copysign(INFINITY, guess.scale) : 0.0F);
      guess.scale = stored(guess.scale);
      if (std::isfinite(guess.scale) && gives(guess, values)) return guess;
      if (scheme_.scale == ScaleType::f16) break;
    }
    return std::nullopt;
  }

  float stored(float scale) const { return scheme_.scale == ScaleType::f16 ? f16_to_f32(f32_to_f16(scale)) : scale; }

  bool gives(const Guess& guess, std::span<const float> values) const {
    const float step = guess.scale / codebook_.scale_to;
    return std::ranges::all_of(values, [&](float value) {
      const float scaled = step != 0 ? value / step + guess.zero_point : guess.zero_point;
      return std::isfinite(scaled) &&
             reconstruct(codebook_.values[encode(codebook_, scaled)], guess.zero_point, step) == value;
    });
  }

  Scheme scheme_;
  Codebook codebook_;
};

/// Scales by which a scheme decodes to the weights, one a group. `different` are the tensor's
/// different values. Empty where none are found.
std::vector<Guess> guesses_for(TensorView<const float> weights, const Scheme& scheme,
                               std::span<const float> different) {
  const Reproduction reproduction(scheme);
  std::vector<Guess> guesses;
  const auto add = [&](std::span<const float> values) {
    if (const auto guess = reproduction.find(values))
      guesses.push_back(*guess);
    else
      guesses.clear();
    return !guesses.empty();
  };
  if (scheme.granularity.kind == Granularity::Kind::tensor) {
    add(different);
    return guesses;
  }
  const GroupMap map = make_group_map(scheme.granularity, weights.shape());
  const int64_t in_channel = weights.shape().inner_elements();
  for (int64_t channel = 0; channel < weights.size(0); ++channel)
    for (int64_t k = 0, run = 0; k < in_channel; k += run) {
      run = map.run(k);
      if (!add({weights.data() + channel * in_channel + k, static_cast<size_t>(run)})) return {};
    }
  return guesses;
}

/// Bytes of the packed tensor; nothing where the scheme does not reproduce the weights.
std::optional<int64_t> bytes_if_exact(TensorView<const float> weights, const Scheme& scheme,
                                      std::span<const float> different) {
  const std::vector<Guess> guesses = guesses_for(weights, scheme, different);
  if (guesses.empty()) return std::nullopt;
  PackedTensor packed = quantize(weights, scheme, "weights");
  for (size_t group = 0; group < guesses.size(); ++group) {
    if (scheme.scale == ScaleType::f16) {
      const uint16_t bits = f32_to_f16(guesses[group].scale);
      std::memcpy(packed.scales.data() + sizeof bits * group, &bits, sizeof bits);
    } else {
      std::memcpy(packed.scales.data() + sizeof(float) * group, &guesses[group].scale, sizeof(float));
    }
    if (scheme.zero_point) packed.zero_points[group] = static_cast<uint8_t>(guesses[group].zero_point);
  }
  encode_nearest(packed, weights);
  Tensor<float> decoded(host_memory(), weights.shape(), MemoryCategory::data);
  dequantize(packed, decoded.view());
  if (!std::ranges::equal(weights, decoded.view())) return std::nullopt;
  return resident_size(packed).total();
}

/// What is tried, cheapest first.
std::vector<Scheme> candidates(const ValueCheck& check, const Shape& shape) {
  using Kind = Granularity::Kind;
  std::vector<Granularity> granularities = {{Kind::tensor}, {Kind::channel}, {Kind::row}};
  for (const int64_t rows : {16, 32, 64, 128, 256})
    if (rows < shape.inner_elements()) granularities.push_back({Kind::block, rows});
  std::vector<Scheme> schemes;
  const auto add = [&](Scheme scheme) {
    // A group holds no more values than it has codes; of blocks, the values are not counted.
    const int64_t codes = int64_t{1} << scheme.bits;
    const Kind kind = scheme.granularity.kind;
    if (kind == Kind::tensor && check.tensor.most > codes) return;
    if (kind == Kind::channel && check.channel.most > codes) return;
    if (kind == Kind::row && check.row.most > codes) return;
    for (const ScaleType type : {ScaleType::f16, ScaleType::f32}) {
      scheme.scale = type;
      schemes.push_back(scheme);
    }
  };
  for (const MethodTraits& traits : scalar_methods()) {
    // Trained values are means of weights, and block ids of sorted weights take more than a table.
    if (traits.trained || traits.sorted) continue;
    for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits) {
      for (const Granularity& granularity : granularities) {
        Scheme scheme = default_scheme(traits.method, bits);
        scheme.granularity = granularity;
        add(scheme);
        if (scheme.sign == ScaleSign::signed_max) {
          scheme.sign = ScaleSign::absolute;
          add(scheme);
        }
        if (traits.method == Method::linear) {
          scheme.zero_point = true;
          add(scheme);
        }
      }
    }
  }
  std::ranges::stable_sort(schemes, {}, [&](const Scheme& scheme) { return estimated_size(scheme, shape).total(); });
  return schemes;
}

}  // namespace

double ValueCheck::table_bytes() const {
  return std::min({tensor.bytes, channel.bytes, row.bytes, 4.0 * static_cast<double>(weights)});
}

double ValueCheck::bytes() const {
  return scheme ? std::min(table_bytes(), static_cast<double>(scheme_bytes)) : table_bytes();
}

std::string ValueCheck::stored_as() const {
  const double least = table_bytes();
  if (scheme && static_cast<double>(scheme_bytes) <= least) return to_string(*scheme);
  if (least == tensor.bytes) return "table by tensor";
  if (least == channel.bytes) return "table by channel";
  return least == row.bytes ? "table by row" : "float32";
}

ValueCheck check_values(TensorView<const float> weights, std::string_view name,
                        const std::function<void(int64_t, int64_t)>& on_weights) {
  make_group_map({}, weights.shape());  // the shapes that there are
  expect_finite(weights, name);
  ValueCheck check{.weights = weights.elements()};
  const auto counted = [&](int64_t weights_done) {
    if (on_weights) on_weights(weights_done, check.weights);
  };
  const std::vector<float> values = count_values(check, weights, counted);
  for (const Scheme& scheme : candidates(check, weights.shape())) {
    counted(check.weights);
    const std::optional<int64_t> bytes = bytes_if_exact(weights, scheme, values);
    if (!bytes) continue;
    check.scheme = scheme;
    check.scheme_bytes = *bytes;
    break;
  }
  return check;
}

}  // namespace nibblenet
