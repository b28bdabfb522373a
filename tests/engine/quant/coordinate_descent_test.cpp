#include <gtest/gtest.h>

#include "engine/quant/bits.h"
#include "engine/quant/gptq.h"
#include "engine/quant/quantizer.h"
#include "tests/engine/quant/hessians.h"

namespace nibblenet {
namespace {

using testing::bell_shaped;
using testing::correlated_hessian;
using testing::error_under;
using testing::gptq;
using testing::row_errors;
using testing::view;

constexpr double damping = 0.01;

/// H with what GPTQ adds to its diagonal.
std::vector<std::vector<double>> damped(const Hessian& hessian) {
  const auto n = static_cast<size_t>(hessian.inputs);
  std::vector<std::vector<double>> h(n, std::vector<double>(n));
  double mean = 0;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j)
      h[i][j] = static_cast<double>(hessian.at(static_cast<int64_t>(i), static_cast<int64_t>(j)));
    mean += h[i][i] / static_cast<double>(n);
  }
  for (size_t i = 0; i < n; ++i) h[i][i] += damping * mean;
  return h;
}

/// The value of every code that a weight may take, and the codes that a row has.
struct Row {
  std::vector<std::vector<double>> values;  ///< by column and code
  std::vector<uint32_t> codes;
};

Row row_of(const PackedTensor& packed, int64_t row) {
  const Codebook codebook = codebook_of(packed);
  const PackedView of = view_of(packed, codebook);
  Row result;
  for (int64_t k = 0; k < of.channel_elements; ++k) {
    const int64_t group = of.groups.group(row, k);
    const float zero = of.zero_points == nullptr ? 0.0F : static_cast<float>(of.zero_points[group]);
    result.values.emplace_back();
    for (int code = 0; code < codebook.count; ++code)
      result.values.back().push_back(static_cast<double>(reconstruct(codebook.values[code], zero, of.step(group))));
    result.codes.push_back(read_field(of.codes + row * of.code_stride, k, of.bits));
  }
  return result;
}

/// Half the derivative of a row's output error by one weight, whose column of H is `h`: (w - v) H.
double gradient(const Row& row, const float* weights, const std::vector<double>& h) {
  double sum = 0;
  for (size_t k = 0; k < h.size(); ++k) sum += (static_cast<double>(weights[k]) - row.values[k][row.codes[k]]) * h[k];
  return sum;
}

/// Coordinate descent by the definition: every code in turn becomes the one with the least error,
/// by trying all.
void descend_directly(Row& row, const float* weights, const std::vector<std::vector<double>>& h) {
  for (size_t j = 0; j < h.size(); ++j) {
    const double now = row.values[j][row.codes[j]];
    const double g = gradient(row, weights, h[j]);
    double least = 0;
    uint32_t best = row.codes[j];
    for (uint32_t code = 0; code < row.values[j].size(); ++code) {
      const double change = now - row.values[j][code];  // of w - v
      const double more = 2 * change * g + change * change * h[j][j];
      if (more >= least) continue;
      least = more;
      best = code;
    }
    row.codes[j] = best;
  }
}

PackedTensor descended(const PackedTensor& nearest, const std::vector<float>& weights, const Hessian& hessian,
                       int passes) {
  PackedTensor packed = nearest;
  const GptqReport done = gptq(packed, view(weights, packed.shape), hessian, ColumnOrder::natural, {.passes = passes});
  EXPECT_EQ(done.rows_kept, 0);
  EXPECT_EQ(done.damping, damping);
  return packed;
}

TEST(CoordinateDescent, EqualsCoordinateDescentByTheDefinition) {
  const Shape shape{5, 150};  // over a border of blocks of columns
  const std::vector<float> weights = bell_shaped(shape.elements(), 31);
  const Hessian hessian = correlated_hessian(150, 900, 32);
  const std::vector<std::vector<double>> h = damped(hessian);
  for (const char* scheme :
       {"linear:3", "linear:2:block:7:zero-point", "kmeans:3", "dynamic-tree:4:row", "nf4:4:tile:3x5"}) {
    SCOPED_TRACE(scheme);
    const PackedTensor nearest = quantize(view(weights, shape), parse_scheme(scheme), "w");
    const PackedTensor before = descended(nearest, weights, hessian, 0),
                       after = descended(nearest, weights, hessian, 2);
    EXPECT_NE(before.codes, after.codes);
    for (int64_t i = 0; i < shape[0]; ++i) {
      Row expected = row_of(before, i);
      for (int pass = 0; pass < 2; ++pass) descend_directly(expected, weights.data() + i * shape[1], h);
      ASSERT_EQ(row_of(after, i).codes, expected.codes) << i;
    }
  }
}

TEST(CoordinateDescent, LowersTheErrorUntilNoCodeAloneCan) {
  const Shape shape{6, 140};
  const std::vector<float> weights = bell_shaped(shape.elements(), 33);
  const Hessian hessian = correlated_hessian(140, 900, 34);
  const std::vector<std::vector<double>> h = damped(hessian);
  const PackedTensor nearest = quantize(view(weights, shape), parse_scheme("kmeans:2"), "w");
  double before = error_under(descended(nearest, weights, hessian, 0), weights, hessian);
  for (const int passes : {1, 3}) {
    const double after = error_under(descended(nearest, weights, hessian, passes), weights, hessian);
    EXPECT_LT(after, before) << passes;
    before = after;
  }
  const PackedTensor last = descended(nearest, weights, hessian, 60);
  for (int64_t i = 0; i < shape[0]; ++i) {
    Row row = row_of(last, i);
    const std::vector<uint32_t> codes = row.codes;
    descend_directly(row, weights.data() + i * shape[1], h);
    EXPECT_EQ(row.codes, codes) << i;
  }
}

TEST(CoordinateDescent, TakesSomethingOffTheErrorOfCorrelatedInputs) {
  const Shape shape{32, 300};
  const std::vector<float> weights = bell_shaped(shape.elements(), 35);
  const Hessian hessian = correlated_hessian(300, 2000, 36);
  for (const char* scheme : {"linear:3", "kmeans:2", "kmeans:3"}) {
    const PackedTensor nearest = quantize(view(weights, shape), parse_scheme(scheme), "w");
    EXPECT_LT(error_under(descended(nearest, weights, hessian, 2), weights, hessian),
              0.97 * error_under(descended(nearest, weights, hessian, 0), weights, hessian))
        << scheme;
  }
}

TEST(CoordinateDescent, WithARateWeightLowersErrorAndBitsTogether) {
  const Shape shape{48, 150};
  const std::vector<float> weights = bell_shaped(shape.elements(), 37);
  const Hessian hessian = correlated_hessian(150, 1000, 38);
  const auto done = [&](int passes) {
    GptqReport report;
    quantize(view(weights, shape), parse_scheme("linear:6"), "w",
             {.range = Range::step,
              .deviations = 0.5F,
              .rounding = Rounding::gptq,
              .passes = passes,
              .rate_weight = 1.4,
              .hessian = &hessian,
              .report = &report});
    return report;
  };
  // A bit costs 1.4 times the error that rounding to nearest can be expected to leave.
  const HessianFactor factor = factorize(hessian, ColumnOrder::natural);
  const PackedTensor nearest =
      quantize(view(weights, shape), parse_scheme("linear:6"), "w", {.range = Range::step, .deviations = 0.5F});
  const double bit = 1.4 * factor.spread() * error_under(nearest, weights, testing::identity(150));
  const auto cost = [&](const GptqReport& report) { return report.error + bit * report.bits; };
  EXPECT_LT(cost(done(1)), cost(done(0)));
  EXPECT_LT(cost(done(2)), cost(done(1)));
}

}  // namespace
}  // namespace nibblenet
