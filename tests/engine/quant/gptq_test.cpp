#include "engine/quant/gptq.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/quant/bits.h"
#include "engine/quant/entropy.h"
#include "engine/quant/entropy_model.h"
#include "engine/quant/quantizer.h"
#include "tests/engine/quant/cases.h"
#include "tests/engine/quant/fields.h"
#include "tests/engine/quant/hessians.h"

namespace nibblenet {
namespace {

using testing::bell_shaped;
using testing::correlated_hessian;
using testing::error_under;
using testing::gptq;
using testing::identity;
using testing::output_error;
using testing::row_errors;
using testing::view;
using testing::write_field;

/// The inverse of a positive definite matrix, Gauss and Jordan.
std::vector<std::vector<double>> inverse(std::vector<std::vector<double>> a) {
  const size_t n = a.size();
  for (size_t i = 0; i < n; ++i) {
    a[i].resize(2 * n);
    a[i][n + i] = 1;
  }
  for (size_t p = 0; p < n; ++p) {
    const double pivot = a[p][p];
    for (double& value : a[p]) value /= pivot;
    for (size_t i = 0; i < n; ++i) {
      if (i == p) continue;
      const double factor = a[i][p];
      for (size_t j = 0; j < 2 * n; ++j) a[i][j] -= factor * a[p][j];
    }
  }
  for (auto& row : a) row.erase(row.begin(), row.begin() + static_cast<ptrdiff_t>(n));
  return a;
}

/// One row by the definition (optimal brain quantization in a fixed order): rounds a weight, then
/// moves all that are left to where the output error is least. The inverse of *their* Hessian is
/// found anew each time.
std::vector<uint32_t> solve_directly(const PackedTensor& nearest, int64_t row, const std::vector<float>& weights,
                                     const Hessian& hessian, const std::vector<int64_t>& order) {
  const Codebook codebook = codebook_of(nearest);
  const PackedView packed = view_of(nearest, codebook);
  const int64_t n = hessian.inputs;
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += static_cast<double>(hessian.at(i, i)) / static_cast<double>(n);
  std::vector<double> w(static_cast<size_t>(n));
  for (int64_t k = 0; k < n; ++k)
    w[static_cast<size_t>(k)] = static_cast<double>(weights[static_cast<size_t>(row * n + k)]);

  std::vector<uint32_t> codes(static_cast<size_t>(n));
  for (size_t at = 0; at < order.size(); ++at) {
    const std::vector<int64_t> left(order.begin() + static_cast<ptrdiff_t>(at), order.end());
    std::vector<std::vector<double>> h(left.size(), std::vector<double>(left.size()));
    for (size_t i = 0; i < left.size(); ++i)
      for (size_t j = 0; j < left.size(); ++j)
        h[i][j] = static_cast<double>(hessian.at(left[i], left[j])) + (i == j ? 0.01 * mean : 0.0);
    const auto inv = inverse(h);
    const int64_t k = left[0];
    const double step = static_cast<double>(packed.step(packed.groups.group(row, k)));
    double distance = INFINITY;
    uint32_t code = 0;
    for (int i = 0; i < codebook.count; ++i) {
      const uint8_t candidate = codebook.ordered_codes[static_cast<size_t>(i)];
      const double away = std::fabs(static_cast<double>(codebook.values[candidate]) * step - w[static_cast<size_t>(k)]);
      if (away < distance) {
        distance = away;
        code = candidate;
      }
    }
    codes[static_cast<size_t>(k)] = code;
    const double error = (w[static_cast<size_t>(k)] - static_cast<double>(codebook.values[code]) * step) / inv[0][0];
    for (size_t i = 0; i < left.size(); ++i) w[static_cast<size_t>(left[i])] -= error * inv[i][0];
  }
  return codes;
}

std::vector<int64_t> order_of(const Hessian& hessian, ColumnOrder order) {
  std::vector<int64_t> columns(static_cast<size_t>(hessian.inputs));
  std::iota(columns.begin(), columns.end(), 0);
  if (order == ColumnOrder::diagonal)
    std::ranges::stable_sort(columns, std::greater<>{}, [&](int64_t k) { return hessian.at(k, k); });
  return columns;
}

TEST(Gptq, EqualsTheDirectSolver) {
  const Shape shape{4, 37};
  const std::vector<float> weights = bell_shaped(shape.elements(), 1);
  const Hessian hessian = correlated_hessian(37, 300, 2);
  for (const ColumnOrder order : {ColumnOrder::natural, ColumnOrder::diagonal})
    for (const char* scheme : {"linear:3", "linear:2:block:7", "kmeans:3", "dynamic-tree:4:row", "nf4:4:tile:3x5"}) {
      SCOPED_TRACE(scheme);
      const PackedTensor nearest = quantize(view(weights, shape), parse_scheme(scheme), "w");
      PackedTensor packed = nearest;
      const GptqReport done = gptq(packed, view(weights, shape), hessian, order);
      EXPECT_EQ(done.damping, 0.01);
      EXPECT_LT(done.rows_kept, 2);
      const std::vector<double> before = row_errors(nearest, weights, hessian);
      const std::vector<double> after = row_errors(packed, weights, hessian);
      for (int64_t row = 0; row < shape[0]; ++row) {
        if (after[static_cast<size_t>(row)] == before[static_cast<size_t>(row)]) continue;  // kept
        const auto expected = solve_directly(nearest, row, weights, hessian, order_of(hessian, order));
        for (int64_t k = 0; k < shape[1]; ++k)
          ASSERT_EQ(read_field(packed.codes.data() + row * packed.code_stride(), k, packed.scheme.bits),
                    expected[static_cast<size_t>(k)])
              << row << ", " << k;
      }
    }
}

TEST(Gptq, BlocksOfColumnsChangeNothing) {
  // Over one border of blocks of 128 columns; the direct solver knows of none.
  const Shape shape{1, 135};
  const std::vector<float> weights = bell_shaped(shape.elements(), 3);
  const Hessian hessian = correlated_hessian(135, 900, 4);
  const PackedTensor nearest = quantize(view(weights, shape), parse_scheme("linear:3"), "w");
  PackedTensor packed = nearest;
  ASSERT_EQ(gptq(packed, view(weights, shape), hessian).rows_kept, 0);
  const auto expected = solve_directly(nearest, 0, weights, hessian, order_of(hessian, ColumnOrder::natural));
  for (int64_t k = 0; k < shape[1]; ++k)
    ASSERT_EQ(read_field(packed.codes.data(), k, 3), expected[static_cast<size_t>(k)]) << k;
}

class EveryMethod : public ::testing::TestWithParam<MethodTraits> {};

TEST_P(EveryMethod, IndependentInputsOfOneSizeLeaveItAtNearest) {
  for (const Shape& shape : testing::awkward_shapes)
    for (const Scheme& scheme : testing::schemes_of(GetParam())) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      const std::vector<float> weights = bell_shaped(shape.elements(), 5);
      const Hessian hessian = identity(shape.inner_elements());
      const QuantizeOptions options{.rounding = Rounding::gptq, .passes = scheme.bits % 2, .hessian = &hessian};
      ASSERT_EQ(quantize(view(weights, shape), scheme, "w", options).codes,
                quantize(view(weights, shape), scheme, "w", {.hessian = &hessian}).codes);
    }
}

TEST_P(EveryMethod, NoRowsOutputErrorGrowsAndTheReportIsTrue) {
  for (const Shape& shape : {Shape{9, 131}, Shape{6, 5, 3, 3}}) {
    const std::vector<float> weights = bell_shaped(shape.elements(), 6);
    // Fewer rows than inputs: H alone is singular.
    for (const int64_t rows : {400, 20}) {
      const Hessian hessian = correlated_hessian(shape.inner_elements(), rows, 7);
      for (const Scheme& scheme : testing::schemes_of(GetParam())) {
        SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
        const PackedTensor nearest = quantize(view(weights, shape), scheme, "w", {.hessian = &hessian});
        PackedTensor packed = nearest;
        const GptqReport done =
            gptq(packed, view(weights, shape), hessian, ColumnOrder::natural, {.passes = rows == 20 ? 2 : 0});
        ASSERT_NO_THROW(validate(packed, "w"));
        ASSERT_EQ(packed.scales, nearest.scales);
        ASSERT_EQ(packed.zero_points, nearest.zero_points);
        ASSERT_EQ(packed.block_ids, nearest.block_ids);
        const std::vector<double> before = row_errors(nearest, weights, hessian);
        const std::vector<double> after = row_errors(packed, weights, hessian);
        for (size_t row = 0; row < before.size(); ++row) ASSERT_LE(after[row], before[row]) << row;
        const double total = std::accumulate(before.begin(), before.end(), 0.0);
        ASSERT_NEAR(done.nearest_error, total, 1e-3 * total + 1e-9);
        ASSERT_NEAR(done.error, std::accumulate(after.begin(), after.end(), 0.0), 1e-3 * total + 1e-9);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, EveryMethod, ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end()),
                         [](const auto& method) { return testing::identifier(method.param.name); });

TEST(Gptq, HalvesTheErrorOfCorrelatedInputsAtLeast) {
  const Shape shape{32, 200};
  const std::vector<float> weights = bell_shaped(shape.elements(), 8);
  const Hessian hessian = correlated_hessian(200, 2000, 9);
  for (const char* scheme : {"linear:2", "linear:3", "kmeans:2", "kmeans:3"}) {
    const PackedTensor nearest = quantize(view(weights, shape), parse_scheme(scheme), "w");
    PackedTensor packed = nearest;
    gptq(packed, view(weights, shape), hessian);
    EXPECT_LT(error_under(packed, weights, hessian), 0.5 * error_under(nearest, weights, hessian)) << scheme;
  }
}

PackedTensor by_step(const std::vector<float>& weights, const Shape& shape, float step, double rate_weight,
                     const Hessian& hessian, GptqReport* report = nullptr) {
  return quantize(view(weights, shape), parse_scheme("linear:6"), "w",
                  {.range = Range::step,
                   .deviations = step,
                   .rounding = Rounding::gptq,
                   .rate_weight = rate_weight,
                   .hessian = &hessian,
                   .report = report});
}

TEST(Gptq, AHigherRateWeightTakesFewerBitsForMoreError) {
  const Shape shape{48, 150};
  const std::vector<float> weights = bell_shaped(shape.elements(), 17);
  const Hessian hessian = correlated_hessian(150, 1000, 18);
  GptqReport before;
  const PackedTensor free = by_step(weights, shape, 0.5F, 0, hessian, &before);
  EXPECT_NEAR(before.bits, code_entropy(free), 0.1) << "bits are those of the codes";
  for (const double rate_weight : {0.5, 1.4, 4.0, 12.0, 40.0}) {
    GptqReport done;
    by_step(weights, shape, 0.5F, rate_weight, hessian, &done);
    EXPECT_LT(done.bits, before.bits) << rate_weight;
    EXPECT_GT(done.error, before.error) << rate_weight;
    before = done;
  }
}

TEST(Gptq, WeighingBitsBeatsALargerStep) {
  const Shape shape{48, 150};
  const std::vector<float> weights = bell_shaped(shape.elements(), 19);
  const Hessian hessian = correlated_hessian(150, 1000, 20);
  GptqReport plain, weighed;
  by_step(weights, shape, 1.4F, 0, hessian, &plain);
  by_step(weights, shape, 1.4F, 1.4, hessian, &weighed);
  // A scale twice as large makes the error four times what it was and takes one bit less: the
  // product stays the same.
  const auto product = [](const GptqReport& done) { return done.error * std::exp2(2 * done.bits); };
  EXPECT_LT(product(weighed), 0.95 * product(plain));
}

TEST(Gptq, ImportantOutputsGetFinerStepsAndMoreBits) {
  const Shape shape{3, 400};
  std::vector<float> weights = bell_shaped(400, 23);  // thrice the same row
  for (int copy = 0; copy < 2; ++copy) weights.insert(weights.end(), weights.begin(), weights.begin() + 400);
  const Hessian hessian = correlated_hessian(400, 2000, 24);
  const std::vector<float> fisher = {4, 1, 0.25F};
  const auto packed = [&](double rate_weight) {
    QuantizeOptions options{.range = Range::step, .deviations = 0.5F, .rounding = Rounding::gptq};
    options.rate_weight = rate_weight;
    options.hessian = &hessian;
    options.fisher = fisher;
    return quantize(view(weights, shape), parse_scheme("linear:8"), "w", options);
  };
  for (const double rate_weight : {0.0, 1.4}) {
    const PackedTensor result = packed(rate_weight);
    EXPECT_FLOAT_EQ(2 * result.scale(0), result.scale(1)) << "a quarter of the squared error counts four times";
    EXPECT_FLOAT_EQ(2 * result.scale(1), result.scale(2));
    Tensor<float> rounded(host_memory(), shape, MemoryCategory::data);
    dequantize(result, rounded.view());
    const std::vector<double> errors = output_error(view(weights, shape), std::as_const(rounded).view(), hessian);
    EXPECT_NEAR(errors[1] / errors[0], 4, 1.2) << rate_weight;
    EXPECT_NEAR(errors[2] / errors[1], 4, 1.2) << rate_weight;
  }
}

TEST(Gptq, FisherIsRelativeToItsMean) {
  EXPECT_EQ(relative_fisher({}, 3), (std::vector<float>{1, 1, 1}));
  EXPECT_EQ(relative_fisher(std::vector<float>{0, 0}, 2), (std::vector<float>{1, 1})) << "nothing is known";
  const std::vector<float> relative = relative_fisher(std::vector<float>{0, 1e-6F, 3e-6F, 0}, 4);
  EXPECT_NEAR(relative[0], 1e-3, 1e-5) << "other images may see it";
  EXPECT_NEAR(relative[2], 3.0, 5e-3);
  EXPECT_NEAR(std::accumulate(relative.begin(), relative.end(), 0.0), 4, 1e-5);
}

TEST(Gptq, WithoutCorrelationsEveryCodeIsTheCheapestOfAll) {
  const Shape shape{64, 40};
  const std::vector<float> weights = bell_shaped(shape.elements(), 21);
  const Hessian hessian = identity(40);
  for (const char* scheme : {"linear:4", "linear:3:channel:zero-point", "kmeans:3", "nf4:4:block:8"}) {
    SCOPED_TRACE(scheme);
    const PackedTensor nearest = quantize(view(weights, shape), parse_scheme(scheme), "w");
    PackedTensor packed = nearest;
    gptq(packed, view(weights, shape), factorize(hessian, ColumnOrder::natural), {.rate = {.weight = 2.0}});

    // U is the root of 1 / 1.01 times the identity, so a bit costs 2.0 times the mean square of
    // nearest rounding.
    const double bit_cost = 2.0 * error_under(nearest, weights, hessian) / static_cast<double>(shape.elements());
    const Codebook codebook = codebook_of(nearest);
    const PackedView of = view_of(nearest, codebook);
    const auto cheapest = [&](const PackedTensor& counted) {
      const CodeRates rates = code_rates(counted.codes, code_layout(counted));
      PackedTensor result = nearest;
      std::ranges::fill(result.codes, uint8_t{0});
      for (int64_t row = 0; row < shape[0]; ++row)
        for (int64_t k = 0; k < shape[1]; ++k) {
          const int64_t group = of.groups.group(row, k);
          const float zero = of.zero_points == nullptr ? 0.0F : static_cast<float>(of.zero_points[group]);
          double least = INFINITY;
          uint32_t best = 0;
          for (int code = 0; code < codebook.count; ++code) {
            const double off = static_cast<double>(weights[static_cast<size_t>(row * shape[1] + k)]) -
                               static_cast<double>(reconstruct(codebook.values[code], zero, of.step(group)));
            const double cost = off * off + bit_cost * static_cast<double>(rates.bits[rates.class_at(row, k)][code]);
            if (cost >= least) continue;
            least = cost;
            best = static_cast<uint32_t>(code);
          }
          write_field(result.codes.data() + row * result.code_stride(), k, result.scheme.bits, best);
        }
      return result;
    };
    EXPECT_EQ(packed.codes, cheapest(cheapest(nearest)).codes);
    EXPECT_NE(packed.codes, nearest.codes);
  }
}

TEST(Gptq, OneFactorServesEveryScheme) {
  const Shape shape{7, 90};
  const std::vector<float> weights = bell_shaped(shape.elements(), 22);
  const Hessian hessian = correlated_hessian(90, 400, 23);
  const HessianFactor factor = factorize(hessian, ColumnOrder::diagonal);
  for (const char* scheme : {"linear:3", "kmeans:2", "nf4"}) {
    QuantizeOptions options{
        .rounding = Rounding::gptq, .order = ColumnOrder::diagonal, .hessian = &hessian, .factor = &factor};
    const PackedTensor shared = quantize(view(weights, shape), parse_scheme(scheme), "w", options);
    options.factor = nullptr;
    EXPECT_EQ(shared.codes, quantize(view(weights, shape), parse_scheme(scheme), "w", options).codes) << scheme;
  }
}

TEST(Gptq, DeadInputsKeepTheirNearestCodes) {
  const Shape shape{5, 40};
  const std::vector<float> weights = bell_shaped(shape.elements(), 10);
  Hessian hessian = correlated_hessian(40, 200, 11);
  const auto kill = [&](int64_t k) {
    for (int64_t i = 0; i < 40; ++i)
      hessian.values[static_cast<size_t>(i * 40 + k)] = hessian.values[static_cast<size_t>(k * 40 + i)] = 0;
  };
  for (const int64_t k : {0, 7, 8, 39}) kill(k);
  const PackedTensor nearest = quantize(view(weights, shape), parse_scheme("linear:3"), "w");
  PackedTensor packed = nearest;
  const GptqReport done = gptq(packed, view(weights, shape), hessian);
  EXPECT_EQ(done.dead_inputs, 4);
  EXPECT_LT(error_under(packed, weights, hessian), error_under(nearest, weights, hessian));
  for (int64_t row = 0; row < 5; ++row)
    for (const int64_t k : {0, 7, 8, 39})
      EXPECT_EQ(read_field(packed.codes.data() + row * packed.code_stride(), k, 3),
                read_field(nearest.codes.data() + row * nearest.code_stride(), k, 3));

  for (int64_t k = 0; k < 40; ++k) kill(k);
  packed = nearest;
  EXPECT_EQ(gptq(packed, view(weights, shape), hessian).rows_kept, 5);
  EXPECT_EQ(packed.codes, nearest.codes);
}

TEST(Gptq, DampingGrowsUntilTheMatrixIsPositiveDefinite) {
  // Eigenvalues 1 ± 1.05: 1 % is not enough, 10 % is. No exact Hessian is like this, a rounded one
  // may be.
  const Hessian hessian{.inputs = 2, .values = {1.0F, 1.05F, 1.05F, 1.0F}};
  const std::vector<float> weights = {0.3F, -0.9F, 1.0F, 0.2F};
  PackedTensor packed = quantize(view(weights, {2, 2}), parse_scheme("linear:3"), "w");
  EXPECT_DOUBLE_EQ(gptq(packed, view(weights, {2, 2}), hessian).damping, 0.1);

  const Hessian hopeless{.inputs = 2, .values = {1.0F, 1e9F, 1e9F, 1.0F}};
  EXPECT_THROW(gptq(packed, view(weights, {2, 2}), hopeless), Error);
}

TEST(Gptq, IsTheSameOnEveryRunWithAsManyThreads) {
  const Shape shape{33, 300};
  const std::vector<float> weights = bell_shaped(shape.elements(), 12);
  const Hessian hessian = correlated_hessian(300, 700, 13);
  const int before = omp_get_max_threads();
  for (const int threads : {1, 3}) {
    omp_set_num_threads(threads);
    const QuantizeOptions options{.range = Range::search, .rounding = Rounding::gptq, .passes = 1, .hessian = &hessian};
    const PackedTensor first = quantize(view(weights, shape), parse_scheme("kmeans:3"), "w", options);
    for (int run = 0; run < 3; ++run)
      ASSERT_EQ(quantize(view(weights, shape), parse_scheme("kmeans:3"), "w", options).codes, first.codes);
  }
  omp_set_num_threads(before);
}

TEST(Gptq, SaysHowFarItIsAndStopsWhenAsked) {
  const Shape shape{2, 300};
  const std::vector<float> weights = bell_shaped(shape.elements(), 14);
  const Hessian hessian = correlated_hessian(300, 700, 15);
  PackedTensor packed = quantize(view(weights, shape), parse_scheme("linear:3"), "w");
  std::vector<int64_t> seen;
  const auto hear = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 600);
    seen.push_back(done);
  };
  gptq(packed, view(weights, shape), hessian, ColumnOrder::natural, {.passes = 1, .on_columns = hear});
  EXPECT_EQ(seen, (std::vector<int64_t>{128, 256, 300, 428, 556, 600}));
  for (const int64_t last : {128, 428}) {
    const auto stop = [&](int64_t done, int64_t) {
      if (done == last) throw Error("stop");
    };
    EXPECT_THROW(gptq(packed, view(weights, shape), hessian, ColumnOrder::natural, {.passes = 1, .on_columns = stop}),
                 Error);
  }
}

TEST(Gptq, RefusesWhatDoesNotFit) {
  const std::vector<float> weights = bell_shaped(12, 16);
  PackedTensor packed = quantize(view(weights, {3, 4}), parse_scheme("linear:3"), "w");
  EXPECT_THROW(gptq(packed, view(weights, {3, 4}), identity(5)), ShapeError);
  const std::vector<float> two(2, 1.0F);
  EXPECT_THROW(
      gptq(packed, view(weights, {3, 4}), factorize(identity(4), ColumnOrder::natural), {.rate = {.fisher = two}}),
      ShapeError);
  EXPECT_THROW(gptq(packed, view(weights, {4, 3}), identity(4)), ShapeError);
  EXPECT_THROW(quantize(view(weights, {3, 4}), Scheme{}, "w", {.rounding = Rounding::gptq}), UsageError);
  EXPECT_THROW(quantize(view(weights, {3, 4}), Scheme{}, "w", {.passes = 1}), UsageError);
  const Hessian other = identity(3);
  EXPECT_THROW(quantize(view(weights, {3, 4}), Scheme{}, "w", {.hessian = &other}), ShapeError);
}

}  // namespace
}  // namespace nibblenet
