#include "training/compression/sensitivity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/quant/entropy.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::random_tensor;
using testing::same_bits;
using testing::small_alexnet;
using testing::state_of;
using testing::TemporaryFolder;

Tensor<float> tensor(const Shape& shape, std::vector<float> values) {
  Tensor<float> result(host_memory(), shape, MemoryCategory::data);
  std::ranges::copy(values, result.data());
  return result;
}

TEST(Divergence, FollowsItsDefinition) {
  const Tensor<float> p = tensor({1, 2}, {std::log(0.75F), std::log(0.25F)});
  const Tensor<float> q = tensor({1, 2}, {5.0F, 5.0F});  // one half each
  EXPECT_NEAR(mean_divergence(p.view(), q.view()), 0.75 * std::log(1.5) + 0.25 * std::log(0.5), 1e-7);
  EXPECT_EQ(mean_divergence(p.view(), p.view()), 0.0);
}

TEST(Divergence, IsNeverNegativeAndTakesLogitsOfAnySize) {
  for (uint64_t seed = 0; seed < 50; ++seed)
    EXPECT_GE(mean_divergence(random_tensor({7, 10}, seed).view(), random_tensor({7, 10}, seed + 100).view()), 0.0);
  const Tensor<float> large = tensor({1, 2}, {3e4F, -3e4F}), shifted = tensor({1, 2}, {6e4F, 0.0F});
  EXPECT_EQ(mean_divergence(large.view(), shifted.view()), 0.0);
}

class Sensitivity : public ::testing::Test {
 protected:
  void SetUp() override {
    write_standin(folder_.path(), 40, 10, 1);
    images_ = load_dataset(folder_.path(), Split::train);
  }
  std::vector<WeightSensitivity> measure(Network& network, const OnProgress& on_progress = {},
                                         MeasuredBytes bytes = MeasuredBytes::stored) {
    return measure_sensitivity(
        network, floats_, images_, Preprocess::for_image_size(64), 16,
        [](const Parameter&) {
          return std::vector<Candidate>{{parse_scheme("linear:2")}, {parse_scheme("linear:8")}};
        },
        [](const Parameter& weight, const Candidate& candidate) {
          return quantize(weight.values().view(), candidate.scheme, weight.name);
        },
        bytes, on_progress);
  }

  TemporaryFolder folder_;
  Dataset images_;
  StateDict floats_ = small_alexnet(6);
  std::unique_ptr<Backend> backend_ = make_test_backend();
};

TEST(ChoiceRecord, KnowsAChoiceByWeightAndCandidate) {
  std::vector<std::string> heard;
  const MeasuredChoice choice = {.candidate = {parse_scheme("linear:4"), 0.5F}, .stored_bytes = 12, .divergence = 0.25};
  ChoiceRecord record({{"a.weight", choice}}, [&](const ChoiceRecord::Entry& entry) { heard.push_back(entry.first); });
  EXPECT_TRUE(heard.empty()) << "what it begins with is known";
  const auto find = [&](const std::string& weight, const Candidate& candidate,
                        MeasuredBytes bytes = MeasuredBytes::stored) { return record.find(weight, candidate, bytes); };
  ASSERT_NE(find("a.weight", choice.candidate), nullptr);
  EXPECT_EQ(find("a.weight", choice.candidate)->divergence, 0.25);
  EXPECT_EQ(find("a.weight", choice.candidate, MeasuredBytes::stored_and_compressed), nullptr);
  EXPECT_EQ(find("a.weight", {parse_scheme("linear:4")}), nullptr) << "another step";
  EXPECT_EQ(find("a.weight", {parse_scheme("linear:4:channel:f16"), 0.5F}), nullptr);
  EXPECT_EQ(find("b.weight", choice.candidate), nullptr);
  MeasuredChoice compressed = choice;
  compressed.compressed_bytes = 7;
  record.add({"a.weight", compressed});
  EXPECT_EQ(find("a.weight", choice.candidate, MeasuredBytes::stored_and_compressed)->compressed_bytes, 7);
  EXPECT_EQ(heard, std::vector<std::string>{"a.weight"});
}

TEST_F(Sensitivity, IsThatOfTheWholeNetworkWithOneWeightPacked) {
  Network network(*backend_, small_alexnet(6));
  const std::vector<WeightSensitivity> measured = measure(network);
  ASSERT_EQ(measured.size(), 8U);
  const Preprocess preprocess = Preprocess::for_image_size(64);
  const Evaluation expected = evaluate(network, images_, preprocess, 16);
  for (const WeightSensitivity& weight : measured) {
    SCOPED_TRACE(weight.name);
    ASSERT_EQ(weight.choices.size(), 2U);
    for (const MeasuredChoice& choice : weight.choices) {
      StateDict dict = small_alexnet(6);
      PackedTensor packed = quantize(floats_.at(weight.name).values().view(), choice.candidate.scheme, weight.name);
      EXPECT_EQ(choice.payload_bytes, payload_bytes(packed));
      EXPECT_EQ(choice.stored_bytes, resident_size(packed).total());
      dict.at(weight.name).value = std::move(packed);
      Network one_packed(*backend_, std::move(dict));
      const Evaluation actual = evaluate(one_packed, images_, preprocess, 16);
      EXPECT_NEAR(choice.divergence, mean_divergence(expected.logits.view(), actual.logits.view()),
                  1e-3 * choice.divergence + 1e-9);
    }
    EXPECT_GT(weight.choices[0].divergence, weight.choices[1].divergence) << "2 bits lose more than 8";
    EXPECT_LT(weight.choices[0].payload_bytes, weight.choices[1].payload_bytes);
  }
}

TEST_F(Sensitivity, LeavesTheNetworkAsItWas) {
  Network network(*backend_, small_alexnet(6));
  measure(network);
  EXPECT_TRUE(same_bits(state_of(network), floats_));
}

TEST_F(Sensitivity, BytesOfACompressedFileAreMeasuredWhenAskedFor) {
  Network network(*backend_, small_alexnet(6));
  for (const WeightSensitivity& weight : measure(network, {}, MeasuredBytes::stored_and_compressed))
    for (const MeasuredChoice& choice : weight.choices) {
      const Parameter& parameter = floats_.at(weight.name);
      EXPECT_EQ(choice.compressed_bytes,
                compressed_bytes(quantize(parameter.values().view(), choice.candidate.scheme, parameter.name)));
      EXPECT_LE(choice.compressed_bytes, choice.stored_bytes);
    }
  EXPECT_EQ(measure(network)[0].choices[0].compressed_bytes, 0);
}

TEST_F(Sensitivity, StopsWhenAskedTo) {
  Network network(*backend_, small_alexnet(6));
  int64_t last = -1;
  EXPECT_THROW(measure(network,
                       [&](int64_t done, int64_t total) {
                         EXPECT_EQ(total, 16);
                         last = done;
                         return done == 3;
                       }),
               Interrupted);
  EXPECT_EQ(last, 3);
  EXPECT_TRUE(same_bits(state_of(network), floats_));
}

}  // namespace
}  // namespace nibblenet
