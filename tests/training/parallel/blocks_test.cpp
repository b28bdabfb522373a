#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <optional>
#include <thread>

#include "engine/core/random.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "training/compression/calibration.h"
#include "training/parallel/block_passes.h"
#include "training/parallel/host_exchange.h"
#include "training/parallel/tree_sum.h"
#include "training/trainer.h"

namespace nibblenet {
namespace {

using testing::same_bits;
using testing::small_alexnet;
using testing::state_of;
using testing::TemporaryFolder;

TEST(TreeSum, ItsBitsDependOnTheNumberOfLeavesAlone) {
  constexpr size_t length = 3;
  for (const int64_t leaves : {1, 2, 3, 4, 5, 7, 8, 11}) {
    std::vector<std::array<float, length>> values(static_cast<size_t>(leaves));
    Random random(7, static_cast<uint64_t>(leaves));
    for (auto& leaf : values)
      for (float& value : leaf) value = random.uniform() * 1e3F - 400.0F;
    const auto sum_of = [&](int64_t ranks, bool backwards) {
      TreeSum whole(leaves, {0, leaves}, length);
      for (int64_t rank = 0; rank < ranks; ++rank) {
        const IndexRange own = part_of_range(leaves, rank, ranks);
        TreeSum part(leaves, own, length);
        for (int64_t i = 0; i < own.size(); ++i) {
          const int64_t leaf = backwards ? own.end - 1 - i : own.begin + i;
          TreeSum::Values room = part.room();
          std::ranges::copy(values[static_cast<size_t>(leaf)], room.data());
          part.add({0, leaf}, std::move(room));
        }
        const std::vector<TreeNode> nodes = nodes_of(leaves, own);
        std::vector<TreeSum::Values> sums = part.take();
        EXPECT_EQ(sums.size(), nodes.size());
        for (size_t i = 0; i < nodes.size(); ++i) whole.add(nodes[i], std::move(sums[i]));
      }
      const TreeSum::Values total = std::move(whole.take().at(0));
      return std::vector<float>(total.data(), total.data() + length);
    };
    const std::vector<float> expected = sum_of(1, false);
    double exact = 0;
    for (const auto& leaf : values) exact += static_cast<double>(leaf[0]);
    EXPECT_NEAR(expected[0], exact, 1e-2);
    for (const int64_t ranks : {1, 2, 3, 5})
      for (const bool backwards : {false, true})
        EXPECT_EQ(sum_of(ranks, backwards), expected) << leaves << " " << ranks;
  }
}

TEST(TreeSum, ASumThatLacksALeafIsNoSum) {
  TreeSum sum(3, {0, 3}, 1);
  sum.add({0, 0}, sum.room());
  sum.add({0, 2}, sum.room());
  EXPECT_THROW(sum.take(), Error);
}

/// Runs work(ranks) on a thread for each of `count` ranks.
template <class Work>
void with_ranks(int count, Work work) {
  const auto ranks = make_ranks_in_process(count);
  std::vector<std::jthread> threads;
  for (const auto& rank : ranks) threads.emplace_back([&work, &rank] { work(*rank); });
}

TEST(Ranks, GatherWhatEachGives) {
  with_ranks(3, [](Ranks& ranks) {
    const std::string mine(static_cast<size_t>(ranks.rank()), 'x');
    EXPECT_EQ(ranks.gather(mine), (std::vector<std::string>{"", "x", "xx"}));
    EXPECT_TRUE(ranks.any(ranks.rank() == 2));
    EXPECT_FALSE(ranks.any(false));
    std::vector<float> values = {1, static_cast<float>(ranks.rank())};
    ranks.add_up(values);
    EXPECT_EQ(values, (std::vector<float>{3, 3}));
  });
}

class BlocksTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    TemporaryFolder folder;
    write_standin(folder.path(), 60, 30, 1);
    train_ = load_dataset(folder.path(), Split::train);
    test_ = load_dataset(folder.path(), Split::test);
  }

  static TrainingOptions options(bool freeze, bool flip) {
    return {.freeze_features = freeze,
            .epochs = 2,
            .batch_size = 25,  // the third batch has 10 images: two blocks, fewer than ranks
            .learning_rate = 0.02,
            .weight_decay = 1e-4,
            .flip = flip,
            .image_size = 64,
            .seed = 3,
            .blocks = 7};
  }

  struct Result {
    StateDict model;
    std::vector<EpochReport> history;
  };
  /// Trains on several ranks, each in this process; returns what rank 0 has, and expects that the
  /// others have the same.
  /// `route`: what a GPU's ranks do, on the CPU's backend.
  enum class Route : uint8_t { cpu, device };
  static Result train(const TrainingOptions& chosen, int ranks, int threads, const char* scheme = nullptr,
                      Route route = Route::cpu) {
    std::vector<Result> results(static_cast<size_t>(ranks));
    with_ranks(ranks, [&](Ranks& own) {
      const auto backend = make_backend("cpu", threads);
      Network network(*backend, small_alexnet(1));
      std::optional<Network> teacher;
      Trainer trainer(network, train_, test_, chosen);
      if (scheme != nullptr) {
        StateDict packed = small_alexnet(1);
        testing::pack_all(packed, parse_scheme(scheme));
        trainer.quantize(std::move(packed));
      }
      if (chosen.distillation.weight > 0) {
        StateDict other = small_alexnet(2);
        testing::pack_all(other, parse_scheme("linear:8:channel"));
        teacher.emplace(*backend, std::move(other));
        trainer.learn_from(*teacher);
      }
      HostExchange exchange(*backend, own);
      Exchange* const by = route == Route::device ? &exchange : nullptr;
      if (chosen.blocks > 0)
        trainer.by_blocks(threads, own, by);
      else if (ranks > 1)
        trainer.by_shares(threads, own, by);
      EXPECT_TRUE(trainer.run({}));
      Result& result = results[static_cast<size_t>(own.rank())];
      result = {scheme != nullptr ? dequantized(trainer.model()) : trainer.model(), trainer.position().history};
    });
    for (size_t rank = 1; rank < results.size(); ++rank) expect_same(results[rank], results[0]);
    return std::move(results[0]);
  }

  static void expect_same(const Result& result, const Result& expected) {
    EXPECT_TRUE(same_bits(result.model, expected.model));
    ASSERT_EQ(result.history.size(), expected.history.size());
    for (size_t i = 0; i < expected.history.size(); ++i) {
      EXPECT_EQ(result.history[i].loss, expected.history[i].loss);
      EXPECT_EQ(result.history[i].train_accuracy, expected.history[i].train_accuracy);
      EXPECT_EQ(result.history[i].test_loss, expected.history[i].test_loss);
      EXPECT_EQ(result.history[i].test_accuracy, expected.history[i].test_accuracy);
    }
  }

  static inline Dataset train_;
  static inline Dataset test_;
};

TEST_F(BlocksTest, BitsDependNeitherOnThreadsNorOnRanks) {
  for (const auto& [freeze, flip] : {std::pair(true, false), {true, true}, {false, true}}) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze << ", flip " << flip);
    const Result expected = train(options(freeze, flip), 1, 1);
    expect_same(train(options(freeze, flip), 1, 2), expected);
    expect_same(train(options(freeze, flip), 2, 1), expected);
    expect_same(train(options(freeze, flip), 3, 2), expected);
  }
}

TEST_F(BlocksTest, MovingAveragesToo) {
  TrainingOptions chosen = options(true, false);
  chosen.recipe.ema = 0.5;
  const Result expected = train(chosen, 1, 1);
  expect_same(train(chosen, 2, 1), expected);
  chosen.recipe.ema = 0;
  EXPECT_FALSE(same_bits(train(chosen, 1, 1).model, expected.model));
}

TEST_F(BlocksTest, SoftLabelsToo) {
  TrainingOptions chosen = options(false, true);
  chosen.recipe = {.label_smoothing = 0.1, .mixing = {.mixup = 0.2, .cutmix = 1}, .bias_lr = 4};
  expect_same(train(chosen, 2, 1), train(chosen, 1, 2));
  chosen.blocks = 25;  // the batch
  const Result whole = train(chosen, 1, 1);
  chosen.blocks = 0;
  const Result plain = train(chosen, 1, 1);
  EXPECT_TRUE(same_bits(plain.model, whole.model));
  EXPECT_NEAR(plain.history.back().loss, whole.history.back().loss, 1e-6) << "entropies are subtracted elsewhere";
  EXPECT_EQ(plain.history.back().train_accuracy, whole.history.back().train_accuracy);
}

TEST_F(BlocksTest, ATeacherToo) {
  for (const auto& [freeze, flip] : {std::pair(true, false), {false, true}}) {
    TrainingOptions chosen = options(freeze, flip);
    chosen.distillation.weight = 0.75;
    const Result expected = train(chosen, 1, 1);
    expect_same(train(chosen, 1, 2), expected);
    expect_same(train(chosen, 3, 1), expected);
    chosen.blocks = 0;
    const Result plain = train(chosen, 1, 1);
    EXPECT_NEAR(plain.history.back().loss, expected.history.back().loss, 1e-4);
    chosen.distillation.weight = 0;
    EXPECT_GT(std::fabs(train(chosen, 1, 1).history.back().loss - plain.history.back().loss), 1e-2);
  }
}

/// On one thread, the backend's training passes are those of a worker. It evaluates other batches.
TEST_F(BlocksTest, OnADeviceRanksChangeNoBit) {
  for (const auto& [freeze, flip] : {std::pair(true, false), {true, true}, {false, true}}) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze << ", flip " << flip);
    const TrainingOptions chosen = options(freeze, flip);
    const Result expected = train(chosen, 1, 1, nullptr, Route::device);
    for (const int ranks : {2, 3}) expect_same(train(chosen, ranks, 1, nullptr, Route::device), expected);
    const Result cpu = train(chosen, 1, 1);
    EXPECT_TRUE(same_bits(expected.model, cpu.model));
    EXPECT_EQ(expected.history.back().loss, cpu.history.back().loss);
    EXPECT_NEAR(expected.history.back().test_loss, cpu.history.back().test_loss, 1e-5);
  }
  TrainingOptions chosen = options(false, true);
  chosen.recipe = {.ema = 0.5, .label_smoothing = 0.1, .mixing = {.mixup = 0.2, .cutmix = 1}, .bias_lr = 4};
  chosen.distillation.weight = 0.5;
  expect_same(train(chosen, 3, 1, nullptr, Route::device), train(chosen, 1, 1, nullptr, Route::device));
  chosen = options(false, false);
  chosen.pruning = {.enabled = true, .fraction = 0.5};
  const char* const scheme = "kmeans:4:channel";
  const Result packed = train(chosen, 1, 1, scheme, Route::device);
  expect_same(train(chosen, 2, 1, scheme, Route::device), packed);
  EXPECT_TRUE(same_bits(packed.model, train(chosen, 1, 1, scheme).model));
}

TEST_F(BlocksTest, OnADeviceSharesWithoutBlocksAreOneProcessButForRounding) {
  TrainingOptions chosen = options(true, false);
  chosen.blocks = 0;
  for (const int64_t batch : {25, 58}) {  // 58: more ranks than images in the last batch
    chosen.batch_size = batch;
    const Result plain = train(chosen, 1, 1);
    const Result shared = train(chosen, 3, 1, nullptr, Route::device);
    EXPECT_NEAR(shared.history.back().loss, plain.history.back().loss, 1e-4);
    EXPECT_NEAR(shared.history.back().test_loss, plain.history.back().test_loss, 1e-4);
  }
}

/// The sums are those of one process but for rounding, and all ranks end with the same bits.
TEST_F(BlocksTest, SharesWithoutBlocksAreOneProcessButForRounding) {
  for (const auto& [freeze, flip] : {std::pair(true, false), {true, true}, {false, true}}) {
    TrainingOptions chosen = options(freeze, flip);
    chosen.blocks = 0;
    const Result plain = train(chosen, 1, 1);
    for (const int ranks : {2, 3}) {
      const Result shared = train(chosen, ranks, 2);
      EXPECT_NEAR(shared.history.back().loss, plain.history.back().loss, 1e-4);
      EXPECT_NEAR(shared.history.back().test_loss, plain.history.back().test_loss, 1e-4);
    }
  }
}

/// More ranks than images in the last batch.
TEST_F(BlocksTest, ARankWithoutImagesAddsNothing) {
  TrainingOptions chosen = options(true, false);
  chosen.blocks = 0;
  chosen.batch_size = 58;
  EXPECT_NEAR(train(chosen, 3, 1).history.back().loss, train(chosen, 1, 1).history.back().loss, 1e-4);
}

TEST_F(BlocksTest, PackedAndPrunedTrainingToo) {
  TrainingOptions chosen = options(false, false);
  chosen.pruning = {.enabled = true, .fraction = 0.5};
  const Result expected = train(chosen, 1, 1, "kmeans:4:channel");
  expect_same(train(chosen, 1, 2, "kmeans:4:channel"), expected);
  expect_same(train(chosen, 3, 1, "kmeans:4:channel"), expected);
}

/// The first step's gradients, whole and in blocks, differ by rounding alone; a block that is the
/// batch gives the bits of one thread without blocks.
TEST_F(BlocksTest, ABlockOfTheWholeBatchIsOneThreadWithoutBlocks) {
  TrainingOptions chosen = options(false, true);
  chosen.blocks = 0;
  const Result plain = train(chosen, 1, 1);
  chosen.blocks = 25;
  const Result whole = train(chosen, 1, 2);
  EXPECT_TRUE(same_bits(plain.model, whole.model));
  EXPECT_EQ(plain.history.back().loss, whole.history.back().loss);
  chosen.blocks = 7;
  const Result cut = train(chosen, 1, 1);
  EXPECT_NEAR(cut.history.back().loss, plain.history.back().loss, 1e-3);
  EXPECT_FALSE(same_bits(cut.model, plain.model)) << "the blocks were not cut";
}

/// 30 images in batches of 4, and 60 in batches of 8: the last round has a smaller batch, and ranks
/// without one.
TEST_F(BlocksTest, EvaluationAndCalibrationOnRanksHaveTheBitsOfOne) {
  const Preprocess preprocess = Preprocess::for_image_size(64);
  const CalibrationOptions chosen{.batch_size = 8, .range_images = 11};
  const auto backend = make_backend("cpu", 1);
  Network alone(*backend, small_alexnet(1));
  const Evaluation expected = evaluate(alone, test_, preprocess, 4);
  const Calibration whole = calibrate(alone, train_, preprocess, chosen);
  for (const int count : {1, 2, 3, 9}) {
    const WeightOwners owners = owners_of_weights(small_alexnet(1), train_.size(), count);
    with_ranks(count, [&](Ranks& own) {
      const auto mine = make_backend("cpu", 1);
      Network network(*mine, small_alexnet(1));
      const Evaluation result = evaluate(network, test_, preprocess, 4, {}, false, &own);
      EXPECT_TRUE(std::ranges::equal(result.logits.view().span(), expected.logits.view().span()));
      EXPECT_EQ(result.loss, expected.loss);
      EXPECT_EQ(result.correct, expected.correct);
      Calibration calibration = calibrate(network, train_, preprocess, chosen, {}, &own, owners);
      EXPECT_EQ(calibration.fisher, whole.fisher);
      EXPECT_EQ(calibration.ranges, whole.ranges);
      for (const auto& [weight, owner] : owners) {
        EXPECT_EQ(calibration.hessians.contains(weight), owner == own.rank()) << weight;
        if (owner == own.rank()) {
          EXPECT_EQ(calibration.hessians[weight].values, whole.hessians.at(weight).values);
        }
      }
      collect_hessians(own, small_alexnet(1), owners, calibration);
      for (const auto& [weight, hessian] : whole.hessians)
        if (own.rank() == 0) {
          EXPECT_EQ(calibration.hessians.at(weight).values, hessian.values) << weight;
        }
      EXPECT_THROW(
          evaluate(
              network, test_, preprocess, 4, [&](int64_t, int64_t) { return own.rank() == count - 1; }, false, &own),
          Interrupted)
          << "all stop where one is asked to";
    });
  }
}

TEST_F(BlocksTest, WhatBlocksCannotDoIsRefused) {
  TrainingOptions chosen = options(false, false);
  chosen.blocks = -1;
  EXPECT_THROW(validate(chosen), UsageError);
  chosen = options(false, false);
  const auto backend = make_backend("cpu", 1);
  Network network(*backend, small_alexnet(1));
  Trainer trainer(network, train_, test_, chosen);
  EXPECT_THROW(trainer.run({}), Error) << "by_blocks() was not called";
}

}  // namespace
}  // namespace nibblenet
