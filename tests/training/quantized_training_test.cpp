#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "engine/io/training_state.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"
#include "training/trainer.h"

// Training in packed form and pruning, whole runs.

namespace nibblenet {
namespace {

using testing::alexnet;
using testing::make_test_backend;
using testing::pack_all;
using testing::small_alexnet;
using testing::TemporaryFolder;

/// The parameters of one model, whichever form they have, to the bit.
bool same_model(const StateDict& a, const StateDict& b) {
  if (!testing::same_bits(dequantized(a), dequantized(b))) return false;
  return std::ranges::all_of(a.parameters, [&](const Parameter& parameter) {
    const Parameter& other = b.at(parameter.name);
    if (!parameter.packed() || !other.packed()) return parameter.packed() == other.packed();
    const PackedTensor &x = parameter.packed_values(), &y = other.packed_values();
    return x.scheme == y.scheme && x.codes == y.codes && x.scales == y.scales && x.codebook == y.codebook;
  });
}

class QuantizedTrainingTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TemporaryFolder>();
    write_standin(folder_->path(), 500, 100, 1);
    train_ = load_dataset(folder_->path(), Split::train);
    test_ = load_dataset(folder_->path(), Split::test);
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static TrainingOptions options(bool freeze, double prune = -1) {
    return {.freeze_features = freeze,
            .epochs = 2,
            .batch_size = 32,
            .learning_rate = 0.02,
            .weight_decay = 1e-4,
            .image_size = 64,
            .seed = 3,
            .pruning = {.enabled = prune >= 0, .fraction = std::max(prune, 0.0)}};
  }
  static StateDict packed(const std::string& scheme) {
    StateDict dict = small_alexnet(1);
    pack_all(dict, parse_scheme(scheme));
    return dict;
  }
  std::filesystem::path file(const std::string& name) const { return folder_->path() / name; }

  std::unique_ptr<Backend> backend_ = make_test_backend(0);
  static inline std::unique_ptr<TemporaryFolder> folder_;
  static inline Dataset train_;
  static inline Dataset test_;
};

TEST_F(QuantizedTrainingTest, TheSavedModelIsTheTrainedNetworkToTheBit) {
  for (const auto& [freeze, scheme] :
       {std::pair{true, "kmeans:2"}, {false, "linear:3:block:16:f16"}, {true, "nf4"}, {false, "kmeans:3:tensor"}}) {
    SCOPED_TRACE(scheme);
    Network network(*backend_, small_alexnet(1));
    Trainer trainer(network, train_, test_, options(freeze));
    trainer.quantize(packed(scheme));
    ASSERT_TRUE(trainer.run({}));
    save_state_dict(file("model.safetensors"), trainer.model());
    StateDict saved = load_state_dict(file("model.safetensors"));

    const StateDict floats = dequantized(saved);
    for (Layer& layer : network.layers()) {
      if (!layer.spec.has_parameters() || layer.weight->packed()) continue;
      const Parameter trained = read_back(*backend_, "", layer.weight->values());
      const auto span = trained.values().view().span();
      EXPECT_EQ(std::memcmp(span.data(), floats.at(layer.spec.name + ".weight").values().data(), span.size_bytes()), 0)
          << layer.spec.name;
    }
    Network loaded(*backend_, std::move(saved));
    const Evaluation evaluation = evaluate(loaded, test_, Preprocess::for_image_size(64), 32);
    EXPECT_EQ(evaluation.loss, trainer.position().history.back().test_loss);
    EXPECT_EQ(evaluation.accuracy(), trainer.position().history.back().test_accuracy);
  }
}

TEST_F(QuantizedTrainingTest, FrozenLayersStayAsTheyArePacked) {
  Network network(*backend_, small_alexnet(1));
  Trainer trainer(network, train_, test_, options(true));
  trainer.quantize(packed("dynamic-tree:4"));
  ASSERT_TRUE(trainer.run({}));
  const StateDict before = packed("dynamic-tree:4"), after = trainer.model();
  for (const std::string& layer : feature_names(alexnet)) {
    EXPECT_EQ(before.at(layer + ".weight").packed_values().codes, after.at(layer + ".weight").packed_values().codes);
    EXPECT_EQ(before.at(layer + ".weight").packed_values().scales, after.at(layer + ".weight").packed_values().scales);
  }
  for (const std::string& layer : classifier_names(alexnet))
    EXPECT_NE(before.at(layer + ".weight").packed_values().scales, after.at(layer + ".weight").packed_values().scales);
}

TEST_F(QuantizedTrainingTest, LearnsInTwoBits) {
  Network network(*backend_, small_alexnet(2));
  TrainingOptions all = options(false);
  all.epochs = 16;
  all.dropout = 0;
  all.weight_decay = 0;
  Trainer trainer(network, train_, test_, all);
  StateDict start = small_alexnet(2);
  pack_all(start, parse_scheme("kmeans:2"));
  trainer.quantize(std::move(start));
  ASSERT_TRUE(trainer.run({}));
  const auto& history = trainer.position().history;
  // The loss goes up and down on the way.
  const auto best = std::ranges::min_element(history, {}, [](const auto& epoch) { return epoch.loss; });
  EXPECT_LT(best->loss, 0.92 * history.front().loss);
}

TEST_F(QuantizedTrainingTest, AResumedRunEndsInTheSameBits) {
  struct Case {
    bool freeze;
    std::string scheme;
    double prune;
  };
  for (const Case& c : {Case{true, "kmeans:2:channel:f16", -1},
                        {false, "linear:3:row", 0.5},
                        {true, "kmeans:3", 0.8},
                        {true, "", 0.7}}) {
    SCOPED_TRACE(::testing::Message() << c.scheme << " freeze " << c.freeze << " prune " << c.prune);
    Network whole(*backend_, small_alexnet(1));
    Trainer uninterrupted(whole, train_, test_, options(c.freeze, c.prune));
    if (!c.scheme.empty()) uninterrupted.quantize(packed(c.scheme));
    ASSERT_TRUE(uninterrupted.run({}));
    {
      Network first(*backend_, small_alexnet(1));
      Trainer stopped(first, train_, test_, options(c.freeze, c.prune));
      if (!c.scheme.empty()) stopped.quantize(packed(c.scheme));
      ASSERT_FALSE(stopped.run({.on_step = [](const TrainingPosition& p, int64_t, double) { return p.step == 13; }}));
      stopped.save_checkpoint(file("checkpoint.safetensors"));
    }
    Checkpoint checkpoint = load_checkpoint(file("checkpoint.safetensors"));
    EXPECT_EQ(checkpoint.packed.packed(), !c.scheme.empty());
    Network second(*backend_, std::move(checkpoint.parameters));
    Trainer resumed(second, train_, test_, checkpoint.options);
    if (!c.scheme.empty()) resumed.quantize(std::move(checkpoint.packed));
    resumed.restore(checkpoint);
    ASSERT_TRUE(resumed.run({}));
    EXPECT_TRUE(same_model(uninterrupted.model(), resumed.model()));
    for (size_t i = 0; i < 2; ++i)
      EXPECT_EQ(uninterrupted.position().history[i].loss, resumed.position().history[i].loss);
  }
}

TEST_F(QuantizedTrainingTest, ScalesLearnAndResumeInTheSameBitsWhileCodesStay) {
  for (const auto& [freeze, scheme] :
       {std::pair{true, "kmeans:2:channel:f16"}, {false, "linear:3:row"}, {false, "trellis:1.25:channel:f16"}}) {
    SCOPED_TRACE(scheme);
    TrainingOptions scales = options(freeze);
    scales.learned = Learned::scales;
    scales.learning_rate = 0.01;
    Network whole(*backend_, small_alexnet(1));
    Trainer uninterrupted(whole, train_, test_, scales);
    uninterrupted.quantize(packed(scheme));
    ASSERT_TRUE(uninterrupted.run({}));
    {
      Network first(*backend_, small_alexnet(1));
      Trainer stopped(first, train_, test_, scales);
      stopped.quantize(packed(scheme));
      ASSERT_FALSE(stopped.run({.on_step = [](const TrainingPosition& p, int64_t, double) { return p.step == 13; }}));
      stopped.save_checkpoint(file("scales.safetensors"));
    }
    Checkpoint checkpoint = load_checkpoint(file("scales.safetensors"));
    Network second(*backend_, std::move(checkpoint.parameters));
    Trainer resumed(second, train_, test_, checkpoint.options);
    resumed.quantize(std::move(checkpoint.packed));
    resumed.restore(checkpoint);
    ASSERT_TRUE(resumed.run({}));
    EXPECT_TRUE(same_model(uninterrupted.model(), resumed.model()));

    const StateDict before = packed(scheme), after = resumed.model();
    for (const std::string& layer : classifier_names(alexnet)) {
      const PackedTensor &was = before.at(layer + ".weight").packed_values(),
                         &is = after.at(layer + ".weight").packed_values();
      EXPECT_EQ(was.codes, is.codes);
      EXPECT_NE(was.scales, is.scales);
      EXPECT_FALSE(
          std::ranges::equal(before.at(layer + ".bias").values().view(), after.at(layer + ".bias").values().view()));
    }
    Network loaded(*backend_, resumed.model());
    const Evaluation evaluation = evaluate(loaded, test_, Preprocess::for_image_size(64), 32);
    EXPECT_EQ(evaluation.loss, resumed.position().history.back().test_loss);
  }
}

TEST_F(QuantizedTrainingTest, ScalesBringAPackedNetworkBackToItsFloatOne) {
  for (const std::string scheme : {"kmeans:2", "trellis:1"}) {
    SCOPED_TRACE(scheme);
    Network floats(*backend_, small_alexnet(2)), network(*backend_, small_alexnet(2));
    TrainingOptions scales = options(false);
    scales.epochs = 6;
    scales.dropout = 0;
    scales.learned = Learned::scales;
    scales.learning_rate = 0.005;
    scales.distillation.weight = 1;
    Trainer trainer(network, train_, test_, scales);
    StateDict start = small_alexnet(2);
    pack_all(start, parse_scheme(scheme));
    trainer.learn_from(floats);
    trainer.quantize(std::move(start));
    ASSERT_TRUE(trainer.run({}));
    const auto& history = trainer.position().history;
    EXPECT_LT(history.back().loss, 0.5 * history.front().loss);
  }
}

TEST_F(QuantizedTrainingTest, ACheckpointReadsAsThePackedModel) {
  Network network(*backend_, small_alexnet(1));
  Trainer trainer(network, train_, test_, options(true));
  trainer.quantize(packed("kmeans:2"));
  ASSERT_TRUE(trainer.run({}));
  trainer.save_checkpoint(file("checkpoint.safetensors"));
  StateDict dict = load_state_dict(file("checkpoint.safetensors"));
  EXPECT_TRUE(drop_training_state(dict));
  EXPECT_NO_THROW(layers_of(dict));
  EXPECT_TRUE(same_model(dict, trainer.model()));
}

/// Zeros of a layer, in a model of any form.
double sparsity_of(const StateDict& model, const std::string& layer) {
  const StateDict floats = dequantized(model);
  const auto weights = floats.at(layer + ".weight").values().view().span();
  return static_cast<double>(count_zeros(weights)) / static_cast<double>(weights.size());
}

TEST_F(QuantizedTrainingTest, PruningReachesItsFractionAndZerosStay) {
  TrainingOptions pruned = options(true, 0.75);
  pruned.pruning.layers["classifier.6"] = 0.25;
  Network network(*backend_, small_alexnet(1));
  Trainer trainer(network, train_, test_, pruned);
  ASSERT_TRUE(trainer.run({}));
  StateDict sparse = trainer.model();
  EXPECT_NEAR(sparsity_of(sparse, "classifier.1"), 0.75, 1e-4);
  EXPECT_NEAR(sparsity_of(sparse, "classifier.4"), 0.75, 1e-3);
  EXPECT_NEAR(sparsity_of(sparse, "classifier.6"), 0.25, 1e-2);
  EXPECT_NEAR(trainer.position().history.back().sparsity, 0.746, 5e-3);

  const StateDict before = dequantized(sparse);
  Network again(*backend_, std::move(sparse));
  Trainer keeps(again, train_, test_, options(true, 0.0));
  ASSERT_TRUE(keeps.run({}));
  const StateDict after = keeps.model();
  for (const std::string& layer : classifier_names(alexnet)) {
    const auto was = before.at(layer + ".weight").values().view(), is = after.at(layer + ".weight").values().view();
    for (int64_t i = 0; i < was.elements(); ++i) ASSERT_EQ(was[i] == 0, is[i] == 0) << layer << " " << i;
    EXPECT_FALSE(std::ranges::equal(was, is));
  }
}

TEST_F(QuantizedTrainingTest, OneThresholdForAllLayersButThoseNamed) {
  TrainingOptions pruned = options(true, 0.5);
  pruned.pruning.global = true;
  pruned.pruning.layers["classifier.6"] = 0.1;
  Network network(*backend_, small_alexnet(1));
  Trainer trainer(network, train_, test_, pruned);
  ASSERT_TRUE(trainer.run({}));
  int64_t zeros = 0, weights = 0;
  for (const LayerSparsity& layer : trainer.sparsity()) {
    if (layer.layer == "classifier.6") {
      EXPECT_NEAR(static_cast<double>(layer.zeros) / static_cast<double>(layer.weights), 0.1, 1e-2);
      continue;
    }
    zeros += layer.zeros;
    weights += layer.weights;
  }
  EXPECT_NEAR(static_cast<double>(zeros) / static_cast<double>(weights), 0.5, 1e-4);
}

TEST_F(QuantizedTrainingTest, PrunedWeightsAreExactZerosInPackedForm) {
  for (const std::string scheme : {"kmeans:2", "kmeans:4:tensor", "linear:2", "nf4", "dynamic-tree:3"}) {
    SCOPED_TRACE(scheme);
    Network network(*backend_, small_alexnet(1));
    Trainer trainer(network, train_, test_, options(true, 0.9));
    trainer.quantize(packed(scheme));
    ASSERT_TRUE(trainer.run({}));
    const StateDict model = trainer.model();
    for (const std::string& layer : classifier_names(alexnet)) EXPECT_GE(sparsity_of(model, layer), 0.895) << layer;
  }
}

TEST_F(QuantizedTrainingTest, WhatCannotBeTrainedIsRefused) {
  for (const std::string scheme : {"stable-embedding:4", "linear:4:channel:zero-point", "trellis:2"}) {
    Network network(*backend_, small_alexnet(1));
    Trainer trainer(network, train_, test_, options(true));
    EXPECT_THROW(trainer.quantize(packed(scheme)), UsageError);
  }
}

}  // namespace
}  // namespace nibblenet
