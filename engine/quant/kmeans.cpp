#include "engine/quant/kmeans.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibblenet {
namespace {

constexpr size_t most_bins = 2048;
constexpr int most_rounds = 500;

/// Sums over the first i samples, so that any run of them has its mean and its error in constant
/// time.
class PrefixSums {
 public:
  explicit PrefixSums(std::span<const Sample> samples) : sums_(samples.size() + 1) {
    for (size_t i = 0; i < samples.size(); ++i) {
      const auto value = static_cast<double>(samples[i].value);
      const auto weight = static_cast<double>(samples[i].weight);
      sums_[i + 1] = {sums_[i].weight + weight, sums_[i].first + weight * value,
                      sums_[i].second + weight * value * value};
    }
  }

  double weight(size_t begin, size_t end) const { return sums_[end].weight - sums_[begin].weight; }
  double mean(size_t begin, size_t end) const { return (sums_[end].first - sums_[begin].first) / weight(begin, end); }
  /// Sum of weight (value - mean)^2; 0 for a run without weight.
  double error(size_t begin, size_t end) const {
    const double total = weight(begin, end);
    if (!(total > 0)) return 0;
    const double first = sums_[end].first - sums_[begin].first;
    return std::max(0.0, sums_[end].second - sums_[begin].second - first * first / total);
  }

 private:
  struct Sums {
    double weight = 0;
    double first = 0;   ///< of weight value
    double second = 0;  ///< of weight value^2
  };
  std::vector<Sums> sums_;
};

/// Cuts n samples in ascending order into `clusters` runs with the least error: D[k][j], the error
/// of the first j samples in k runs, is the least D[k-1][i] + error(i, j), and the best i never
/// falls as j grows.
class OptimalCuts {
 public:
  OptimalCuts(std::span<const Sample> samples, size_t clusters)
      : sums_(samples), count_(samples.size()), before_(count_ + 1), now_(count_ + 1), cuts_(clusters) {
    for (size_t j = 1; j <= count_; ++j) now_[j] = sums_.error(0, j);
    cuts_[0].assign(count_ + 1, 0);
    for (size_t k = 1; k < clusters; ++k) {
      std::swap(before_, now_);
      cuts_[k].assign(count_ + 1, 0);
      fill(k, k + 1, count_, k, count_ - 1);
    }
  }

  /// The first sample of each run, and the count at the end.
  std::vector<size_t> starts() const {
    std::vector<size_t> result(cuts_.size() + 1, count_);
    for (size_t k = cuts_.size(); k-- > 0;) result[k] = cuts_[k][result[k + 1]];
    return result;
  }

 private:
  /// D[k][j] for j in [first, last], whose best cuts lie in [lowest, highest].
  void fill(size_t k, size_t first, size_t last, size_t lowest, size_t highest) {
    if (first > last) return;
    const size_t j = first + (last - first) / 2;
    double best = std::numeric_limits<double>::infinity();
    size_t cut = lowest;
    for (size_t i = lowest; i <= std::min(highest, j - 1); ++i) {
      const double error = before_[i] + sums_.error(i, j);
      if (error < best) {
        best = error;
        cut = i;
      }
    }
    now_[j] = best;
    cuts_[k][j] = static_cast<uint32_t>(cut);
    fill(k, first, j - 1, lowest, cut);
    fill(k, j + 1, last, cut, highest);
  }

  PrefixSums sums_;
  size_t count_;
  std::vector<double> before_;
  std::vector<double> now_;
  std::vector<std::vector<uint32_t>> cuts_;
};

/// Bins of equal counts: each becomes one sample with their mean and total weight.
std::vector<Sample> binned(std::span<const Sample> samples, const PrefixSums& sums) {
  if (samples.size() <= most_bins) return {samples.begin(), samples.end()};
  std::vector<Sample> bins;
  for (size_t bin = 0; bin < most_bins; ++bin) {
    const size_t begin = bin * samples.size() / most_bins;
    const size_t end = (bin + 1) * samples.size() / most_bins;
    const double weight = sums.weight(begin, end);
    bins.push_back(
        {weight > 0 ? static_cast<float>(sums.mean(begin, end)) : samples[begin].value, static_cast<float>(weight)});
  }
  return bins;
}

/// Lloyd's iteration on samples in ascending order: assign samples to the nearest mean, then update
/// the means.
void iterate(std::vector<double>& means, std::span<const Sample> samples, const PrefixSums& sums) {
  std::vector<size_t> starts(means.size() + 1, 0);
  starts.back() = samples.size();
  for (int round = 0; round < most_rounds; ++round) {
    bool changed = false;
    for (size_t i = 1; i < means.size(); ++i) {
      const double middle = (means[i - 1] + means[i]) / 2;
      const auto start = static_cast<size_t>(
          std::ranges::upper_bound(samples, middle, {}, [](const Sample& s) { return static_cast<double>(s.value); }) -
          samples.begin());
      changed |= start != starts[i];
      starts[i] = start;
    }
    for (size_t i = 0; i < means.size(); ++i)
      if (sums.weight(starts[i], starts[i + 1]) > 0) means[i] = sums.mean(starts[i], starts[i + 1]);
    if (!changed) return;
  }
}

}  // namespace

std::vector<float> train_codebook(std::vector<Sample>& samples, int bits) {
  const size_t size = size_t{1} << bits;
  std::ranges::sort(samples, [](const Sample& a, const Sample& b) {
    return a.value != b.value ? a.value < b.value : a.weight < b.weight;
  });
  if (!std::ranges::any_of(samples, [](const Sample& sample) { return sample.weight > 0; }))
    for (Sample& sample : samples) sample.weight = 1;
  if (samples.empty()) return std::vector<float>(size, 0.0F);

  const PrefixSums sums(samples);
  const std::vector<Sample> bins = binned(samples, sums);
  const PrefixSums bin_sums(bins);
  const std::vector<size_t> starts = OptimalCuts(bins, std::min(size, bins.size())).starts();
  std::vector<double> means;
  for (size_t i = 0; i + 1 < starts.size(); ++i)
    means.push_back(bin_sums.weight(starts[i], starts[i + 1]) > 0 ? bin_sums.mean(starts[i], starts[i + 1])
                                                                  : static_cast<double>(bins[starts[i]].value));
  std::ranges::sort(means);
  iterate(means, samples, sums);

  std::vector<float> values;
  for (const double mean : means) values.push_back(static_cast<float>(mean));
  std::ranges::sort(values);
  values.resize(size, values.back());
  return values;
}

}  // namespace nibblenet
