#include "training/compression/channel_selection.h"

#include <gmock/gmock.h>

#include <cmath>
#include <numeric>

#include "engine/core/error.h"
#include "engine/core/random.h"
#include "tests/support/small_network.h"

namespace nibblenet {
namespace {

using ::testing::ElementsAre;
using testing::random_tensor;

/// The Hessian of `rows` random inputs that correlate: sums of `rank` hidden ones, and noise.
Hessian correlated_hessian(int64_t inputs, int64_t rank, float noise, uint64_t seed) {
  constexpr int64_t rows = 400;
  const Tensor<float> hidden = random_tensor({rows, rank}, seed), mix = random_tensor({rank, inputs}, seed + 1),
                      own = random_tensor({rows, inputs}, seed + 2);
  Tensor<float> x(host_memory(), {rows, inputs}, MemoryCategory::data);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < inputs; ++j) {
      float sum = noise * own.data()[i * inputs + j];
      for (int64_t r = 0; r < rank; ++r) sum += hidden.data()[i * rank + r] * mix.data()[r * inputs + j];
      x.data()[i * inputs + j] = sum;
    }
  HessianAccumulator sums(inputs);
  sums.add(x.view());
  return std::move(sums).finish();
}

/// x with a x = b for a[n, n], by Gaussian elimination; overwrites a and b.
std::vector<double> solved(std::vector<double> a, std::vector<double> b) {
  const size_t n = b.size();
  for (size_t i = 0; i < n; ++i)
    for (size_t r = i + 1; r < n; ++r) {
      const double factor = a[r * n + i] / a[i * n + i];
      for (size_t c = i; c < n; ++c) a[r * n + c] -= factor * a[i * n + c];
      b[r] -= factor * b[i];
    }
  for (size_t i = n; i-- > 0;) {
    for (size_t c = i + 1; c < n; ++c) b[i] -= a[i * n + c] * b[c];
    b[i] /= a[i * n + i];
  }
  return b;
}

/// H with 1 % of its mean diagonal added to the diagonal, as the selection sees it.
class DampedHessian {
 public:
  explicit DampedHessian(const Hessian& hessian) : hessian_(hessian) {
    for (const float square : hessian.diagonal()) damping_ += 0.01 * static_cast<double>(square);
    damping_ /= static_cast<double>(hessian.inputs);
  }
  double at(int64_t i, int64_t j) const { return static_cast<double>(hessian_.at(i, j)) + (i == j ? damping_ : 0); }
  /// d H d^T
  double square(std::span<const double> d) const {
    double sum = 0;
    for (int64_t i = 0; i < hessian_.inputs; ++i)
      for (int64_t j = 0; j < hessian_.inputs; ++j)
        sum += d[static_cast<size_t>(i)] * at(i, j) * d[static_cast<size_t>(j)];
    return sum;
  }

 private:
  const Hessian& hessian_;
  double damping_ = 0;
};

std::vector<double> row_of(TensorView<const float> weights, int64_t k) {
  const int64_t n = weights.shape().inner_elements();
  return {weights.begin() + k * n, weights.begin() + (k + 1) * n};
}

/// The row of weights, 0 at inputs that are not kept, whose output comes closest to that of `row`.
std::vector<double> best_row(std::span<const double> row, const DampedHessian& hessian, std::span<const int64_t> kept) {
  std::vector<double> a, b;
  for (const int64_t i : kept) {
    for (const int64_t j : kept) a.push_back(hessian.at(i, j));
    b.push_back(0);
    for (size_t j = 0; j < row.size(); ++j) b.back() += hessian.at(i, static_cast<int64_t>(j)) * row[j];
  }
  const std::vector<double> x = solved(a, b);
  std::vector<double> result(row.size());
  for (size_t i = 0; i < kept.size(); ++i) result[static_cast<size_t>(kept[i])] = x[i];
  return result;
}

std::vector<int64_t> inputs_of(std::span<const int64_t> channels, int64_t size) {
  std::vector<int64_t> inputs;
  for (const int64_t channel : channels)
    for (int64_t i = 0; i < size; ++i) inputs.push_back(channel * size + i);
  return inputs;
}

/// The weighted output error of the best weights on these channels.
double least_error(TensorView<const float> weights, const DampedHessian& hessian, std::span<const float> fisher,
                   std::span<const int64_t> channels, int64_t size) {
  double sum = 0;
  for (int64_t k = 0; k < weights.size(0); ++k) {
    std::vector<double> difference = row_of(weights, k);
    const std::vector<double> best = best_row(difference, hessian, inputs_of(channels, size));
    for (size_t i = 0; i < best.size(); ++i) difference[i] -= best[i];
    sum += hessian.square(difference) * static_cast<double>(fisher[static_cast<size_t>(k)]);
  }
  return sum;
}

constexpr int64_t outputs = 5;
constexpr std::array<float, outputs> fisher = {1, 0.2F, 3, 0.5F, 2};

TEST(KeepChannels, ChoosesTheBestWeightsForWhatRemains) {
  for (const auto& [channels, size, count] : {std::array<int64_t, 3>{24, 1, 9}, {12, 4, 5}, {200, 1, 40}, {7, 9, 7}}) {
    SCOPED_TRACE(::testing::Message() << count << " of " << channels << " channels of " << size);
    const int64_t inputs = channels * size;
    const Hessian hessian = correlated_hessian(inputs, 6, 0.5F, 1);
    const DampedHessian damped(hessian);
    const Tensor<float> weights = random_tensor({outputs, inputs}, 4);
    const KeptChannels kept = keep_channels(weights.view(), hessian, fisher, channels, count);
    ASSERT_EQ(static_cast<int64_t>(kept.channels.size()), count);
    EXPECT_TRUE(std::ranges::is_sorted(kept.channels));
    ASSERT_EQ(kept.weights.shape(), (Shape{outputs, count * size}));

    double square = 0;
    const std::vector<int64_t> columns = inputs_of(kept.channels, size);
    for (int64_t k = 0; k < outputs; ++k) {
      const std::vector<double> row = row_of(weights.view(), k), best = best_row(row, damped, columns);
      square += damped.square(row) * static_cast<double>(fisher[static_cast<size_t>(k)]);
      for (size_t i = 0; i < columns.size(); ++i)
        EXPECT_NEAR(row_of(kept.weights.view(), k)[i], best[static_cast<size_t>(columns[i])], 1e-3);
    }
    EXPECT_NEAR(kept.error, least_error(weights.view(), damped, fisher, kept.channels, size) / square, 1e-4);
  }
}

TEST(KeepChannels, RemovesWhatCostsLeastByTryingAll) {
  for (const auto& [channels, size] : {std::pair<int64_t, int64_t>{14, 1}, {6, 4}}) {
    for (uint64_t seed = 10; seed < 16; ++seed) {
      const Hessian hessian = correlated_hessian(channels * size, 5, 0.7F, seed);
      const Tensor<float> weights = random_tensor({outputs, channels * size}, seed + 5);
      const KeptChannels kept = keep_channels(weights.view(), hessian, fisher, channels, channels - 1);
      std::vector<double> errors;
      for (int64_t removed = 0; removed < channels; ++removed) {
        std::vector<int64_t> left(static_cast<size_t>(channels));
        std::iota(left.begin(), left.end(), int64_t{0});
        left.erase(left.begin() + removed);
        errors.push_back(least_error(weights.view(), DampedHessian(hessian), fisher, left, size));
      }
      const int64_t best = std::ranges::min_element(errors) - errors.begin();
      EXPECT_THAT(kept.channels, ::testing::Not(::testing::Contains(best))) << "seed " << seed;
    }
  }
}

TEST(KeepChannels, HeedsWhichOutputsMatter) {
  const Hessian hessian = correlated_hessian(2, 2, 1.0F, 3);
  Tensor<float> weights = random_tensor({2, 2}, 1);
  std::ranges::copy(std::array{1.0F, 0.0F, 0.0F, 1.0F}, weights.data());  // each output looks at one input
  const std::array first = {100.0F, 1.0F}, second = {1.0F, 100.0F};
  EXPECT_THAT(keep_channels(weights.view(), hessian, first, 2, 1).channels, ElementsAre(0));
  EXPECT_THAT(keep_channels(weights.view(), hessian, second, 2, 1).channels, ElementsAre(1));
}

TEST(KeepChannels, AFewInputsStandForManyThatFollowFromThem) {
  const Hessian hessian = correlated_hessian(300, 8, 0, 7);
  const Tensor<float> weights = random_tensor({outputs, 300}, 8);
  EXPECT_LT(keep_channels(weights.view(), hessian, {}, 300, 40).error, 0.01);
  EXPECT_GT(keep_channels(weights.view(), hessian, {}, 300, 2).error, 0.05);
}

TEST(KeepChannels, InputsThatWereAlwaysZeroGoFirst) {
  Hessian hessian = correlated_hessian(12, 12, 0.5F, 5);
  for (const int64_t dead : {0, 3, 4, 5, 10})  // of channels of two inputs, all of 2 and a half of 0, 1 and 5
    for (int64_t i = 0; i < 12; ++i)
      hessian.values[static_cast<size_t>(dead * 12 + i)] = hessian.values[static_cast<size_t>(i * 12 + dead)] = 0;
  const Tensor<float> weights = random_tensor({outputs, 12}, 6);
  const KeptChannels five = keep_channels(weights.view(), hessian, {}, 6, 5);
  EXPECT_THAT(five.channels, ElementsAre(0, 1, 3, 4, 5));
  EXPECT_EQ(five.error, 0);
  EXPECT_EQ(five.weights.data()[0], weights.data()[0]);
  EXPECT_EQ(five.weights.data()[4], weights.data()[6]);

  const KeptChannels all = keep_channels(weights.view(), hessian, {}, 6, 6);  // dead ones fill up
  EXPECT_TRUE(std::ranges::equal(all.weights.view(), weights.view()));
  std::ranges::fill(hessian.values, 0.0F);
  EXPECT_THAT(keep_channels(weights.view(), hessian, {}, 6, 2).channels, ElementsAre(0, 1));
}

TEST(KeepChannels, ReportsProgressAndStops) {
  const Hessian hessian = correlated_hessian(20, 20, 0.5F, 5);
  const Tensor<float> weights = random_tensor({outputs, 20}, 6);
  std::vector<int64_t> seen;
  keep_channels(weights.view(), hessian, {}, 20, 17, [&](int64_t removed, int64_t of) {
    EXPECT_EQ(of, 3);
    seen.push_back(removed);
  });
  EXPECT_THAT(seen, ElementsAre(0, 1, 2, 3));
  struct Enough {};
  EXPECT_THROW(keep_channels(weights.view(), hessian, {}, 20, 1, [](int64_t, int64_t) { throw Enough(); }), Enough);
}

TEST(KeepChannels, RefusesWhatDoesNotFit) {
  const Hessian hessian = correlated_hessian(12, 12, 0.5F, 5);
  const Tensor<float> weights = random_tensor({outputs, 12}, 6), other = random_tensor({outputs, 10}, 6);
  const auto keep = [&](const Tensor<float>& w, std::span<const float> of, int64_t channels, int64_t count) {
    return keep_channels(w.view(), hessian, of, channels, count);
  };
  EXPECT_THROW(keep(weights, {}, 6, 0), UsageError);
  EXPECT_THROW(keep(weights, {}, 6, 7), UsageError);
  EXPECT_THROW(keep(weights, {}, 5, 2), ShapeError);
  EXPECT_THROW(keep(other, {}, 5, 2), ShapeError);
  EXPECT_THROW(keep(weights, std::span(fisher).first(4), 6, 2), ShapeError);
  Tensor<float> broken = random_tensor({outputs, 12}, 6);
  broken.data()[7] = NAN;
  EXPECT_THROW(keep(broken, {}, 6, 2), Error);
}

}  // namespace
}  // namespace nibblenet
