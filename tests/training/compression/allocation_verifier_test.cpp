#include "training/compression/allocation_verifier.h"

#include <gtest/gtest.h>

#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::same_bits;
using testing::small_alexnet;
using testing::state_of;
using testing::TemporaryFolder;

TEST(AllocationVerifier, ComparesThePackedNetworkWithTheFloatOne) {
  const TemporaryFolder folder;
  write_standin(folder.path(), 40, 10, 1);
  const Dataset images = load_dataset(folder.path(), Split::train);
  const Preprocess preprocess = Preprocess::for_image_size(64);
  const auto backend = make_test_backend();
  const StateDict floats = small_alexnet(6);
  const auto quantized = [](const Parameter& weight, const Candidate& candidate) {
    return quantize(weight.values().view(), candidate.scheme, weight.name);
  };

  std::vector<WeightSensitivity> measured;
  Allocation allocation;
  StateDict packed = small_alexnet(6);
  for (Parameter& parameter : packed.parameters) {
    if (!parameter.is_weight()) continue;
    measured.push_back(
        {.name = parameter.name,
         .choices = {{.candidate = {parse_scheme("linear:8")}}, {.candidate = {parse_scheme("linear:2")}}}});
    allocation.choices.push_back(measured.size() % 2);
    const Scheme scheme = measured.back().choices[measured.size() % 2].candidate.scheme;
    parameter.value = quantize(std::as_const(parameter).values().view(), scheme, parameter.name);
  }

  Network network(*backend, small_alexnet(6)), packed_network(*backend, std::move(packed));
  const Evaluation expected = evaluate(network, images, preprocess, 16);
  const Evaluation actual = evaluate(packed_network, images, preprocess, 16);
  AllocationVerifier verify(network, floats, images, preprocess, 16, quantized);
  const Verified verified = verify(chosen_candidates(measured, allocation));
  EXPECT_EQ(verified.float_accuracy, expected.accuracy());
  EXPECT_EQ(verified.accuracy, actual.accuracy());
  EXPECT_EQ(verified.float_loss, expected.loss);
  EXPECT_EQ(verified.loss, actual.loss);
  EXPECT_EQ(verified.divergence, mean_divergence(expected.logits.view(), actual.logits.view()));
  EXPECT_GT(verified.divergence, 0);
  EXPECT_EQ(verified.right.first - verified.right.second, expected.correct - actual.correct);
  EXPECT_TRUE(same_bits(state_of(network), floats));
}

}  // namespace
}  // namespace nibblenet
