#include "training/compression/channel_pruning.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::relative_error;
using testing::small_alexnet;
using testing::TemporaryFolder;

class ChannelPruningTest : public ::testing::Test {
 protected:
  ChannelPruningTest() {
    write_standin(folder_.path(), 60, 10, 1);
    images_ = load_dataset(folder_.path(), Split::train);
  }
  Calibration measured(const StateDict& model) const {
    const auto backend = make_test_backend();
    Network network(*backend, dequantized(model));
    return calibrate(network, images_, Preprocess::for_image_size(64), {.positions = 1000});  // all there are
  }
  Evaluation evaluated(const StateDict& model) const {
    const auto backend = make_test_backend();
    Network network(*backend, dequantized(model));
    return evaluate(network, images_, Preprocess::for_image_size(64), 20);
  }

  TemporaryFolder folder_;
  Dataset images_;
};

/// Makes a channel's output 0 for whatever input.
void silence(StateDict& model, const std::string& layer, int64_t channel) {
  Tensor<float>& weight = model.at(layer + ".weight").values();
  const int64_t length = weight.shape().inner_elements();
  std::fill_n(weight.data() + channel * length, length, 0.0F);
  model.at(layer + ".bias").values().data()[channel] = -1;
}

TEST_F(ChannelPruningTest, RemovingSilentChannelsKeepsTheLogits) {
  const std::map<std::string, std::vector<int64_t>> silent = {
      {"features.0", {2}},     {"features.3", {0, 12}},      {"features.6", {5, 6}},   {"features.8", {10}},
      {"features.10", {0, 3}}, {"classifier.1", {7, 8, 66}}, {"classifier.4", {0, 20}}};
  StateDict model = small_alexnet(3);
  std::map<std::string, int64_t> counts;
  for (const auto& [layer, channels] : silent) {
    for (const int64_t channel : channels) silence(model, layer, channel);
    counts[layer] = model.at(layer + ".bias").shape()[0] - static_cast<int64_t>(channels.size());
  }
  const Evaluation before = evaluated(model);
  const std::vector<PrunedChannels> pruned = prune_channels(model, measured(model), counts);
  ASSERT_EQ(pruned.size(), silent.size());
  EXPECT_EQ(pruned.front().layer, "classifier.4");
  EXPECT_EQ(pruned.front().channels, 35);
  EXPECT_EQ(pruned.front().kept, 33);
  EXPECT_EQ(model.at("features.3.weight").shape(), (Shape{11, 8, 5, 5}));
  EXPECT_EQ(model.at("classifier.1.weight").shape(), (Shape{64, 8 * 36}));
  EXPECT_LT(relative_error(evaluated(model).logits.view(), before.logits.view()), 1e-5);
}

TEST_F(ChannelPruningTest, TheWeightsBehindMakeUpForWhatIsGone) {
  StateDict model = small_alexnet(4), cut = small_alexnet(4);
  const Evaluation before = evaluated(model);
  const std::vector<PrunedChannels> pruned = prune_channels(model, measured(model), {{"classifier.1", 20}});
  EXPECT_GT(pruned.front().error, 0);
  EXPECT_LT(pruned.front().error, 0.5);
  // Compared with cutting off the same channels and changing no weight behind them.
  const auto left = model.at("classifier.1.bias").values().view();
  for (int64_t channel = 0; channel < 67; ++channel)
    if (std::ranges::find(left, cut.at("classifier.1.bias").values().data()[channel]) == left.end())
      silence(cut, "classifier.1", channel);
  EXPECT_LT(relative_error(evaluated(model).logits.view(), before.logits.view()),
            0.5 * relative_error(evaluated(cut).logits.view(), before.logits.view()));
}

TEST_F(ChannelPruningTest, RefusesWhatNoLayerHas) {
  const StateDict model = small_alexnet(1);
  using Counts = std::map<std::string, int64_t>;
  for (const Counts& counts : {Counts{{"classifier.2", 3}},
                               {{"classifier.6", 5}},
                               {{"classifier.1", 0}},
                               {{"classifier.1", 68}},
                               {{"features.0.weight", 3}},
                               {{"", 3}}})
    EXPECT_THROW(check_channels(model, counts), UsageError) << counts.begin()->first;
  EXPECT_NO_THROW(check_channels(model, {{"classifier.1", 67}, {"features.0", 1}}));
}

}  // namespace
}  // namespace nibblenet
