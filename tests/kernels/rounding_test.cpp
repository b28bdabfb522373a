#include <gtest/gtest.h>

#include <cmath>

#include "engine/quant/bits.h"
#include "tests/kernels/schemes.h"
#include "tests/support/test_backend.h"

// Rounding in training: the bits that packing and decoding give, and gradients that follow their
// definition.

namespace nibblenet {
namespace {

using testing::dequantized;
using testing::from;
using testing::identifier;
using testing::make_test_backend;
using testing::on;
using testing::output_of;
using testing::quantized;
using testing::same_bits;
using testing::schemes_of;
using testing::uniform;
using testing::Values;

/// The steps of a packed tensor, one per group.
Values steps_of(const PackedTensor& packed) {
  const Codebook codebook = codebook_of(packed);
  Values steps({packed.groups()});
  for (size_t group = 0; group < steps.data.size(); ++group)
    steps.data[group] = packed.scale(static_cast<int64_t>(group)) / codebook.scale_to;
  return steps;
}

/// A rule and the memory it looks at.
struct Rule {
  Tensor<float> steps;
  RoundingRule rule;

  Rule(Backend& backend, const PackedTensor& packed)
      : steps(on(backend, steps_of(packed))),
        rule{make_group_map(packed.scheme.granularity, packed.shape), codebook_of(packed),
             std::as_const(steps).view()} {}
};

struct Gradients {
  Values weights, steps, codebook;
};

/// Without the codebook's gradient unless `learns_values`.
Gradients backward(Backend& backend, const Rule& rule, const Values& master, const Values& dvalues,
                   bool learns_values = true) {
  const Tensor<float> weights = on(backend, master);
  Gradients gradients{dvalues, {}, {}};
  Tensor<float> dweights = on(backend, dvalues);
  const auto run = [&](TensorView<float> dsteps, TensorView<float> dcodebook) {
    backend.training().round_weights_backward(dweights.view(), dsteps, dcodebook, weights.view(), rule.rule);
  };
  gradients.steps = output_of(backend, rule.steps.shape(), [&](TensorView<float> dsteps) {
    if (!learns_values) return run(dsteps, {});
    gradients.codebook = output_of(backend, {256}, [&](TensorView<float> dcodebook) { run(dsteps, dcodebook); });
  });
  gradients.weights = from(backend, dweights.view());
  return gradients;
}

/// As kernels/training.h defines them, weight by weight, in double.
struct Expected {
  Values weights;
  std::vector<double> steps, codebook = std::vector<double>(256);

  Expected(const PackedTensor& packed, const Values& master, const Values& dvalues)
      : weights(master.shape), steps(static_cast<size_t>(packed.groups())) {
    const Codebook codebook_used = codebook_of(packed);
    const GroupMap map = make_group_map(packed.scheme.granularity, packed.shape);
    const Values all_steps = steps_of(packed);
    const auto value_of = [&](int rank) {
      return codebook_used.values[codebook_used.ordered_codes[static_cast<size_t>(rank)]];
    };
    for (int64_t i = 0; i < master.shape.elements(); ++i) {
      const auto at = static_cast<size_t>(i);
      const auto group = static_cast<size_t>(map.group(i / map.channel_elements, i % map.channel_elements));
      const float step = all_steps.data[group];
      if (step == 0) continue;
      const float x = master.data[at] / step, d = dvalues.data[at];
      const uint8_t code = encode(codebook_used, x);
      const bool above = x > value_of(codebook_used.count - 1), below = x < value_of(0);
      const bool returns = above ? d * step > 0 : d * step < 0;
      weights.data[at] = (!above && !below) || returns ? d : 0.0F;
      steps[group] +=
          static_cast<double>(d) * static_cast<double>(codebook_used.values[code] - (above || below ? 0.0F : x));
      codebook[code] += static_cast<double>(d) * static_cast<double>(step);
    }
  }
};

/// Sums of n terms of at most `magnitude`, in float32.
void expect_near(const Values& actual, const std::vector<double>& expected, int64_t terms, double magnitude) {
  ASSERT_EQ(actual.data.size(), expected.size());
  const double bound = 1.2e-7 * static_cast<double>(terms) * magnitude;
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(static_cast<double>(actual.data[i]), expected[i], bound);
}

class RoundWeights : public ::testing::TestWithParam<MethodTraits> {
 protected:
  /// Every granularity at the narrowest and the widest width and at 4 bits; what steps are rounded
  /// to does not matter.
  static std::vector<Scheme> schemes() {
    std::vector<Scheme> result = schemes_of(GetParam());
    std::erase_if(result, [](const Scheme& scheme) {
      const bool width = scheme.bits == GetParam().min_bits || scheme.bits == 4 || scheme.bits == GetParam().max_bits;
      return scheme.zero_point || scheme.scale == ScaleType::f16 || !width;
    });
    return result;
  }

  std::unique_ptr<Backend> backend_ = make_test_backend();
};

TEST_P(RoundWeights, GivesTheBitsOfPackingAndDecoding) {
  for (const Shape& shape : {Shape{1, 1}, Shape{7, 131}, Shape{66, 17}, Shape{5, 3, 7, 5}}) {
    for (const Scheme& scheme : schemes()) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      Values weights = uniform(shape, 3);
      for (size_t i = 0; i < weights.data.size(); i += 5) weights.data[i] = i % 2 == 0 ? 0.5F : 0.0F;  // ties
      const PackedTensor packed = quantize(weights.view(), scheme, "w");
      const Rule rule(*backend_, packed);
      const Tensor<float> master = on(*backend_, weights);
      const Values rounded = output_of(*backend_, shape, [&](TensorView<float> y) {
        backend_->training().round_weights(y, master.view(), rule.rule);
      });
      EXPECT_TRUE(same_bits(rounded, dequantized(packed)));
    }
  }
}

TEST_P(RoundWeights, GroupsOfZerosStayZerosWithoutGradients) {
  const Shape shape{3, 40};
  for (const Scheme& scheme : schemes()) {
    SCOPED_TRACE(to_string(scheme));
    Values weights = uniform(shape, 4);
    std::fill_n(weights.data.begin(), 80, 0.0F);
    const PackedTensor packed = quantize(weights.view(), scheme, "w");
    const Rule rule(*backend_, packed);
    const Tensor<float> master = on(*backend_, weights);
    const Values rounded = output_of(*backend_, shape, [&](TensorView<float> y) {
      backend_->training().round_weights(y, master.view(), rule.rule);
    });
    EXPECT_TRUE(same_bits(rounded, dequantized(packed)));
    if (scheme.granularity.kind != Granularity::Kind::channel) continue;
    const Gradients gradients = backward(*backend_, rule, weights, uniform(shape, 5));
    EXPECT_TRUE(std::all_of(gradients.weights.data.begin(), gradients.weights.data.begin() + 80,
                            [](float gradient) { return gradient == 0; }));
    EXPECT_EQ(gradients.steps.data[0], 0);
    EXPECT_EQ(gradients.steps.data[1], 0);
    if (scheme.bits > 4) continue;  // more values than weights: no error
    EXPECT_NE(gradients.steps.data[2], 0);
  }
}

TEST_P(RoundWeights, GradientsFollowTheirDefinition) {
  for (const Shape& shape : {Shape{1, 1}, Shape{7, 131}, Shape{66, 17}, Shape{3, 2, 7, 5}}) {
    for (const Scheme& scheme : schemes()) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      const PackedTensor packed = quantized(shape, scheme, 3);
      Values master = uniform(shape, 6);  // other weights: some lie outside of the range, either way
      for (float& weight : master.data) weight *= 1.5F;
      const Values dvalues = uniform(shape, 7);
      const bool learns_values = scheme.granularity.kind == Granularity::Kind::channel;
      const Gradients actual = backward(*backend_, Rule(*backend_, packed), master, dvalues, learns_values);
      const Expected expected(packed, master, dvalues);
      EXPECT_EQ(actual.weights, expected.weights);
      const double largest = 2 * static_cast<double>(codebook_of(packed).scale_to) + 3;
      expect_near(actual.steps, expected.steps, shape.elements(), largest);
      if (learns_values) expect_near(actual.codebook, expected.codebook, shape.elements(), 1.0);
    }
  }
}

/// The codes of a packed tensor, as numbers.
Values codes_of(const PackedTensor& packed) {
  Values codes(packed.shape);
  const int64_t elements = packed.shape.inner_elements();
  for (int64_t i = 0; i < packed.shape.elements(); ++i)
    codes.data[static_cast<size_t>(i)] = static_cast<float>(
        read_field(packed.codes.data() + i / elements * packed.code_stride(), i % elements, packed.scheme.bits));
  return codes;
}

TEST_P(RoundWeights, CodesThatStayKeepTheirValuesAndTheirGradients) {
  for (const Shape& shape : {Shape{1, 1}, Shape{5, 37}, Shape{34, 7}, Shape{3, 2, 7, 5}}) {
    for (const Scheme& scheme : schemes()) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      const PackedTensor packed = quantized(shape, scheme, 3);
      Rule rule(*backend_, packed);
      rule.rule.by_code = true;
      const Values codes = codes_of(packed), dvalues = uniform(shape, 7);
      const Tensor<float> master = on(*backend_, codes);
      const Values rounded = output_of(*backend_, shape, [&](TensorView<float> y) {
        backend_->training().round_weights(y, master.view(), rule.rule);
      });
      EXPECT_TRUE(same_bits(rounded, dequantized(packed)));

      const Gradients actual = backward(*backend_, rule, codes, dvalues);
      EXPECT_EQ(actual.weights, dvalues);
      const Codebook codebook = codebook_of(packed);
      const Values steps = steps_of(packed);
      std::vector<double> of_steps(steps.data.size()), of_codebook(256);
      const GroupMap map = make_group_map(scheme.granularity, shape);
      for (int64_t i = 0; i < shape.elements(); ++i) {
        const auto group = static_cast<size_t>(map.group(i / map.channel_elements, i % map.channel_elements));
        const auto code = static_cast<size_t>(codes.data[static_cast<size_t>(i)]);
        const auto d = static_cast<double>(dvalues.data[static_cast<size_t>(i)]);
        if (steps.data[group] == 0) continue;
        of_steps[group] += d * static_cast<double>(codebook.values[code]);
        of_codebook[code] += d * static_cast<double>(steps.data[group]);
      }
      expect_near(actual.steps, of_steps, shape.elements(), static_cast<double>(codebook.scale_to) + 1);
      expect_near(actual.codebook, of_codebook, shape.elements(), 1.0);
    }
  }
}

std::vector<MethodTraits> unsorted_methods() {
  std::vector<MethodTraits> methods(scalar_methods().begin(), scalar_methods().end());
  std::erase_if(methods, [](const MethodTraits& traits) { return traits.sorted; });
  return methods;
}

INSTANTIATE_TEST_SUITE_P(Methods, RoundWeights, ::testing::ValuesIn(unsorted_methods()),
                         [](const auto& instance) { return identifier(instance.param.name); });

/// dL/dstep and dL/dvalue agree with differences of L while the codes stay: L = sum of dvalues *
/// values.
TEST(RoundWeightsGradient, AgreesWithDifferences) {
  const auto backend = make_test_backend();
  const Shape shape{6, 50};
  PackedTensor packed = quantized(shape, parse_scheme("kmeans:2:channel"), 3);
  const Values master = dequantized(packed), dvalues = uniform(shape, 7);  // x is a value: no weight is between two
  const Gradients gradients = backward(*backend, Rule(*backend, packed), master, dvalues);
  const auto loss = [&] {
    const Values values = dequantized(packed);
    double sum = 0;
    for (size_t i = 0; i < values.data.size(); ++i)
      sum += static_cast<double>(values.data[i]) * static_cast<double>(dvalues.data[i]);
    return sum;
  };
  for (size_t value = 0; value < 4; ++value) {
    const double before = loss();
    packed.codebook[value] += 0.01F;
    EXPECT_NEAR((loss() - before) / 0.01, static_cast<double>(gradients.codebook.data[value]), 2e-4) << value;
    packed.codebook[value] -= 0.01F;
  }
}

/// L = sum of dvalues * round(x) * step, where x = master / step counts as linear inside of the
/// range, as in LSQ. There the derivative of round(x) * step by step is round(x) - x; outside of it
/// the derivative is the outermost value.
TEST(RoundWeightsGradient, OfAStepIsTheRoundingErrorInsideAndTheExtremeOutside) {
  const auto backend = make_test_backend();
  PackedTensor packed = quantized({1, 4}, parse_scheme("linear:3:channel"), 3);
  const Rule rule(*backend, packed);
  const float step = packed.scale(0) / 3;
  Values master({1, 4}), dvalues({1, 4});
  master.data = {0.75F * step, -2.25F * step, 5.0F * step, -9.0F * step};
  const std::vector<double> derivatives = {0.25, 0.25, 3, -3};
  for (size_t i = 0; i < 4; ++i) {
    std::ranges::fill(dvalues.data, 0.0F);
    dvalues.data[i] = 2;
    EXPECT_NEAR(static_cast<double>(backward(*backend, rule, master, dvalues).steps.data[0]), 2 * derivatives[i], 1e-5);
  }
}

TEST(RoundWeightsGradient, WeightsOutsideOfTheRangeMayOnlyReturn) {
  const auto backend = make_test_backend();
  const PackedTensor packed = quantized({1, 4}, parse_scheme("linear:2:channel"), 3);
  const float step = packed.scale(0);
  Values master({1, 4}), dvalues({1, 4});
  master.data = {2 * step, 2 * step, -2 * step, -2 * step};
  dvalues.data = {1, -1, 1, -1};  // a step goes the other way
  const Values gradient = backward(*backend, Rule(*backend, packed), master, dvalues).weights;
  EXPECT_EQ(gradient.data, (std::vector<float>{1, 0, 0, -1}));
}

}  // namespace
}  // namespace nibblenet
