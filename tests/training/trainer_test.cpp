#include "training/trainer.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "engine/io/holdout.h"
#include "engine/io/json.h"
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

/// The stand-in, small, drawn once for all tests of this file.
class TrainerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TemporaryFolder>();
    write_standin(folder_->path(), 1000, 200, 1);
    train_ = load_dataset(folder_->path(), Split::train);
    test_ = load_dataset(folder_->path(), Split::test);
    fitting_ = part_of(train_, Split::fitting, 60);
    validation_ = part_of(train_, Split::validation, 20);
    few_ = load_dataset(folder_->path(), Split::test, 30);
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static TrainingOptions options(bool freeze, bool flip) {
    return {.freeze_features = freeze,
            .epochs = 3,
            .batch_size = 32,
            .learning_rate = 0.02,
            .weight_decay = 1e-4,
            .schedule = Schedule::warmup_cosine,
            .flip = flip,
            .image_size = 64,
            .seed = 3};
  }

  static TrainingOptions validated(bool freeze, bool flip) {
    TrainingOptions chosen = options(freeze, flip);
    chosen.epochs = 2;
    chosen.batch_size = 20;
    chosen.validation = true;
    return chosen;
  }

  /// A trainer on the images that the options name.
  static std::unique_ptr<Trainer> trainer_of(Network& network, const TrainingOptions& chosen) {
    if (!chosen.validation) return std::make_unique<Trainer>(network, train_, test_, chosen);
    return std::make_unique<Trainer>(network, fitting_, few_, chosen, &validation_);
  }

  /// Stops a run by `until`, else in its second epoch.
  static void expect_resumable(const TrainingOptions& options,
                               const Trainer::Callbacks& until = {
                                   .on_step = [](const TrainingPosition& p, int64_t, double) {
                                     return p.epoch == 1 && p.batch == 13;
                                   }});

  /// (frozen, flipped): features that are cached, that are not, and none that are frozen.
  static constexpr std::array<std::pair<bool, bool>, 3> ways = {{{true, false}, {true, true}, {false, true}}};

  static inline std::unique_ptr<TemporaryFolder> folder_;
  static inline Dataset train_;
  static inline Dataset test_;
  static inline Dataset fitting_;     ///< 60 images
  static inline Dataset validation_;  ///< 20 images
  static inline Dataset few_;         ///< 30 test images
};

/// Whether a run that was stopped in the middle of its second epoch ends in the bits of one that
/// was not.
void TrainerTest::expect_resumable(const TrainingOptions& options, const Trainer::Callbacks& until) {
  const auto backend = make_test_backend(0);
  Network teacher(*backend, small_alexnet(9));
  const auto taught = [&](Network& network, const TrainingOptions& chosen) {
    auto trainer = trainer_of(network, chosen);
    if (chosen.distillation.weight > 0) trainer->learn_from(teacher);
    return trainer;
  };
  Network whole(*backend, small_alexnet(1));
  const auto uninterrupted = taught(whole, options);
  ASSERT_TRUE(uninterrupted->run({}));

  const auto checkpoint_path = folder_->path() / "checkpoint.safetensors";
  {
    Network first(*backend, small_alexnet(1));
    const auto stopped = taught(first, options);
    ASSERT_FALSE(stopped->run(until));
    stopped->save_checkpoint(checkpoint_path);
    EXPECT_FALSE(is_of_finished_run(checkpoint_path));
  }
  Checkpoint checkpoint = load_checkpoint(checkpoint_path);
  EXPECT_EQ(checkpoint.options.distillation.weight, options.distillation.weight);
  Network second(*backend, std::move(checkpoint.parameters));
  const auto resumed = taught(second, checkpoint.options);
  resumed->restore(checkpoint);
  ASSERT_TRUE(resumed->run({}));

  EXPECT_TRUE(same_bits(state_of(whole), state_of(second)));
  const auto epochs = static_cast<size_t>(options.epochs);
  ASSERT_EQ(resumed->position().history.size(), epochs);
  for (size_t i = 0; i < epochs; ++i) {
    EXPECT_EQ(uninterrupted->position().history[i].loss, resumed->position().history[i].loss);
    EXPECT_EQ(uninterrupted->position().history[i].measured().loss, resumed->position().history[i].measured().loss);
  }
  EXPECT_TRUE(same_bits(uninterrupted->model(), resumed->model()));
  EXPECT_EQ(uninterrupted->position().best, resumed->position().best);
  ASSERT_EQ(resumed->tested().has_value(), options.validation);
  if (options.validation) {
    EXPECT_EQ(uninterrupted->tested()->loss, resumed->tested()->loss);
  }
  resumed->save_checkpoint(checkpoint_path);
  EXPECT_TRUE(is_of_finished_run(checkpoint_path));
}

TEST_F(TrainerTest, AValidatedRunResumesToTheBitInEveryPhase) {
  for (const bool freeze : {true, false}) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze);
    expect_resumable(validated(freeze, false), {.on_step = [](const TrainingPosition& p, int64_t, double) {
                       return p.epoch == 1 && p.batch == 2;
                     }});
    int evaluations = 0;
    const auto stop_in = [&](int number, int64_t images) {
      evaluations = 0;
      return Trainer::Callbacks{.on_test = [&evaluations, number, images](int64_t done, int64_t total) {
        evaluations += done == 0 ? 1 : 0;
        EXPECT_EQ(total, evaluations < 3 ? validation_.size() : few_.size());
        return evaluations == number && total == images;
      }};
    };
    expect_resumable(validated(freeze, false), stop_in(2, validation_.size()));
    expect_resumable(validated(freeze, false), stop_in(3, few_.size()));
  }
}

TEST_F(TrainerTest, ValidationKeepsTheBestEpochAndTestsOnce) {
  int not_the_last = 0;
  for (const bool freeze : {true, false}) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze);
    const auto backend = make_test_backend(0);
    Network network(*backend, small_alexnet(1));
    TrainingOptions restless = validated(freeze, false);
    restless.epochs = 6;
    restless.learning_rate = 0.05;
    restless.schedule = Schedule::constant;
    const auto trainer = trainer_of(network, restless);
    std::vector<StateDict> after;  // each epoch
    std::map<int64_t, int> tests;  // by their numbers of images
    ASSERT_TRUE(trainer->run({.on_test =
                                  [&](int64_t done, int64_t total) {
                                    tests[total] += done == 0 ? 1 : 0;
                                    return false;
                                  },
                              .on_epoch = [&](const EpochReport&) { after.push_back(state_of(network)); }}));
    EXPECT_EQ(tests, (std::map<int64_t, int>{{validation_.size(), 6}, {few_.size(), 1}}));

    size_t best = 0;
    const Preprocess preprocess = Preprocess::for_image_size(64);
    const auto& history = trainer->position().history;
    ASSERT_EQ(history.size(), 6U);
    for (size_t i = 0; i < after.size(); ++i) {
      Network again(*backend, copy_of(after[i]));
      const Evaluation measured = evaluate(again, validation_, preprocess, 20);
      EXPECT_EQ(history[i].validation.value().accuracy, measured.accuracy());
      EXPECT_NEAR(history[i].validation.value().loss, measured.loss, 1e-5);
      EXPECT_EQ(history[i].test_accuracy, 0) << "no test in between";
      const EpochScore now = history[i].measured(), before = history[best].measured();
      if (now.accuracy > before.accuracy || (now.accuracy == before.accuracy && now.loss < before.loss)) best = i;
    }
    EXPECT_EQ(trainer->position().best, static_cast<int64_t>(best) + 1);
    EXPECT_TRUE(same_bits(trainer->model(), after[best]));
    EXPECT_TRUE(trainer->position().tested);
    Network chosen(*backend, copy_of(after[best]));
    EXPECT_EQ(trainer->tested().value().correct, evaluate(chosen, few_, preprocess, 20).correct);
    EXPECT_EQ(trainer->tested().value().images, few_.size());
    not_the_last += trainer->position().best < restless.epochs ? 1 : 0;
  }
  EXPECT_GT(not_the_last, 0) << "nothing was chosen here";
}

/// Weights that do not move: the first epoch is the best for good.
TEST_F(TrainerTest, PatienceEndsARunEarlyAndMoreOfItGoesOn) {
  const auto backend = make_test_backend(0);
  const auto path = folder_->path() / "patient.safetensors";
  TrainingOptions still = validated(true, false);
  still.epochs = 9;
  still.patience = 2;
  still.learning_rate = 1e-30;
  still.schedule = Schedule::constant;
  {
    Network network(*backend, small_alexnet(1));
    const auto trainer = trainer_of(network, still);
    ASSERT_TRUE(trainer->run({}));
    EXPECT_EQ(trainer->position().best, 1);
    EXPECT_EQ(trainer->position().epoch, 3);
    EXPECT_TRUE(trainer->tested().has_value());
    trainer->save_checkpoint(path);
    EXPECT_TRUE(is_of_finished_run(path));
  }
  const Checkpoint checkpoint = load_checkpoint(path);
  for (const auto& [patience, epochs] : {std::pair{2, 3}, {4, 5}, {0, 9}}) {
    Network network(*backend, copy_of(checkpoint.parameters));
    still.patience = patience;
    const auto trainer = trainer_of(network, still);
    trainer->restore(checkpoint);
    ASSERT_TRUE(trainer->run({}));
    EXPECT_EQ(trainer->position().epoch, epochs);
    EXPECT_EQ(trainer->position().best, 1);
  }
}

TEST_F(TrainerTest, EpochsBeforeTheLastPruningAreNotTheBest) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(1));
  TrainingOptions pruned = validated(true, false);
  pruned.epochs = 3;
  pruned.learning_rate = 1e-30;
  pruned.pruning = {.enabled = true, .fraction = 0.5, .until = 0.6};  // in the second of three epochs
  const auto trainer = trainer_of(network, pruned);
  ASSERT_TRUE(trainer->run({}));
  EXPECT_EQ(trainer->position().best, 2);
  for (const LayerSparsity& layer : trainer->sparsity())
    EXPECT_NEAR(static_cast<double>(layer.zeros) / static_cast<double>(layer.weights), 0.5, 0.01) << layer.layer;
}

TEST_F(TrainerTest, ValidationImagesAreThereWhereTheyAreAskedForAndOnlyThere) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(1));
  EXPECT_THROW(Trainer(network, fitting_, test_, validated(true, false)), Error);
  EXPECT_THROW(Trainer(network, fitting_, test_, options(true, false), &validation_), Error);
  TrainingOptions impatient = options(true, false);
  impatient.patience = 1;
  EXPECT_THROW(Trainer(network, train_, test_, impatient), UsageError);
}

TEST_F(TrainerTest, ACheckpointFromBeforeValidationReads) {
  const auto backend = make_test_backend(0);
  const auto path = folder_->path() / "old.safetensors";
  {
    Network network(*backend, small_alexnet(1));
    Trainer trainer(network, fitting_, few_, options(true, false));
    ASSERT_FALSE(trainer.run({.on_step = [](const TrainingPosition& p, int64_t, double) { return p.epoch == 1; }}));
    trainer.save_checkpoint(path);
  }
  StateDict dict = load_state_dict(path);
  for (const auto& [key, newer] : {std::pair{"training_options", std::vector{"validation", "patience", "recipe"}},
                                   {"training_position", {"best", "tested"}}}) {
    nlohmann::json document = nlohmann::json::parse(dict.metadata.at(key));
    for (const char* name : newer) EXPECT_EQ(document.erase(name), 1U) << name;
    dict.metadata[key] = document.dump();
  }
  save_state_dict(path, dict);
  const Checkpoint checkpoint = load_checkpoint(path);
  EXPECT_FALSE(checkpoint.options.validation);
  EXPECT_EQ(checkpoint.position.best, 0);
  EXPECT_FALSE(is_of_finished_run(path));
  Network network(*backend, copy_of(checkpoint.parameters));
  Trainer trainer(network, fitting_, few_, checkpoint.options);
  trainer.restore(checkpoint);
  ASSERT_TRUE(trainer.run({}));
  EXPECT_EQ(trainer.position().history.size(), 3U);
}

TEST_F(TrainerTest, ABestEpochThatContradictsItsCheckpointIsRefused) {
  const auto backend = make_test_backend(0);
  const auto path = folder_->path() / "odd_best.safetensors";
  {
    Network network(*backend, small_alexnet(1));
    const auto trainer = trainer_of(network, validated(true, false));
    ASSERT_FALSE(trainer->run({.on_step = [](const TrainingPosition& p, int64_t, double) { return p.epoch == 1; }}));
    trainer->save_checkpoint(path);
  }
  const auto restore = [&](const auto& change, bool with_validation = true) {
    Checkpoint checkpoint = load_checkpoint(path);
    change(checkpoint);
    Network network(*backend, small_alexnet(1));
    TrainingOptions chosen = validated(true, false);
    chosen.validation = with_validation;
    const auto trainer =
        with_validation ? trainer_of(network, chosen) : std::make_unique<Trainer>(network, fitting_, few_, chosen);
    trainer->restore(checkpoint);
  };
  EXPECT_NO_THROW(restore([](Checkpoint&) {}));
  for (const int64_t wrong : {int64_t{-1}, int64_t{0}, int64_t{2}, std::numeric_limits<int64_t>::max()})
    EXPECT_THROW(restore([&](auto& c) { c.position.best = wrong; }), FormatError) << wrong;
  EXPECT_THROW(restore([](auto& c) { c.best.parameters.clear(); }), FormatError);
  EXPECT_THROW(restore([](auto& c) { c.best.parameters.pop_back(); }), FormatError);
  EXPECT_THROW(restore([](auto& c) { c.best.parameters.push_back({.name = "x", .value = Tensor<float>()}); }), Error);
  EXPECT_THROW(restore([](auto& c) { c.best.at("classifier.6.weight").value = Tensor<float>(); }), Error);
  EXPECT_THROW(restore([](auto& c) { c.position.history[0].validation.reset(); }), FormatError);
  EXPECT_THROW(restore([](auto& c) { c.position.history[0].validation = EpochScore{.loss = NAN, .accuracy = NAN}; }),
               FormatError);
  EXPECT_THROW(restore([](Checkpoint&) {}, false), FormatError);
}

TEST_F(TrainerTest, ResumedRunEndsInTheSameBits) {
  for (const auto& [freeze, flip] : ways) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze << " flip " << flip);
    expect_resumable(options(freeze, flip));
  }
}

TEST_F(TrainerTest, ARunWithAveragesResumesToTheBit) {
  for (const auto& [freeze, flip] : ways) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze << " flip " << flip);
    TrainingOptions averaged = validated(freeze, flip);
    averaged.recipe.ema = 0.9;
    expect_resumable(
        averaged, {.on_step = [](const TrainingPosition& p, int64_t, double) { return p.epoch == 1 && p.batch == 2; }});
  }
}

/// The averages from their formula, in double, of the weights behind every step.
TEST_F(TrainerTest, TheAverageOfTheWeightsIsMeasuredAndIsTheModel) {
  constexpr double decay = 0.7;
  for (const bool freeze : {true, false}) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze);
    const auto backend = make_test_backend(0);
    Network network(*backend, small_alexnet(1)), alone(*backend, small_alexnet(1));
    TrainingOptions averaged = options(freeze, false);
    averaged.epochs = 1;
    averaged.batch_size = 100;
    averaged.recipe.ema = decay;
    Trainer trainer(network, train_, test_, averaged);
    std::map<std::string, std::vector<double>> expected;
    for (const Parameter& parameter : state_of(network).parameters)
      expected[parameter.name].assign(parameter.values().view().begin(), parameter.values().view().end());
    ASSERT_TRUE(trainer.run({.on_step = [&](const TrainingPosition& p, int64_t, double) {
      const auto n = static_cast<double>(p.step);
      const double kept = std::min(decay, (1 + n) / (10 + n));
      const StateDict now = state_of(network);
      for (auto& [name, values] : expected)
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = kept * values[i] + (1 - kept) * static_cast<double>(now.at(name).values().data()[i]);
      return false;
    }}));
    const StateDict model = trainer.model();
    for (const auto& [name, values] : expected)
      for (size_t i = 0; i < values.size(); ++i)
        ASSERT_NEAR(model.at(name).values().data()[i], values[i], 1e-6 * (1 + std::fabs(values[i]))) << name;
    EXPECT_FALSE(same_bits(model, state_of(network)));
    Network as_saved(*backend, copy_of(model));
    const Evaluation measured = evaluate(as_saved, test_, Preprocess::for_image_size(64), 100);
    EXPECT_NEAR(trainer.position().history.back().test_loss, measured.loss, 1e-5);

    averaged.recipe.ema = 0;
    Trainer without(alone, train_, test_, averaged);
    ASSERT_TRUE(without.run({}));
    EXPECT_TRUE(same_bits(state_of(network), without.model())) << "averaging does not change training";
  }
}

TEST_F(TrainerTest, ARunWithSoftLabelsResumesToTheBit) {
  for (const auto& [freeze, flip] : ways) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze << " flip " << flip);
    TrainingOptions soft = validated(freeze, flip);
    soft.recipe = {.label_smoothing = 0.1, .bias_lr = 8};
    if (flip) soft.recipe.mixing = {.mixup = 0.2, .cutmix = 1};
    if (!freeze) soft.distillation.weight = 0.5;
    expect_resumable(
        soft, {.on_step = [](const TrainingPosition& p, int64_t, double) { return p.epoch == 1 && p.batch == 2; }});
  }
}

/// Only the last layer's bias may step, so its first step shows the gradient and the rate.
TEST_F(TrainerTest, TheStepOfABiasIsThatOfSoftLabelsAtItsOwnRate) {
  const auto backend = make_test_backend(0);
  constexpr double smoothing = 0.3, rate = 0.02;
  const auto step_of = [&](const RecipeOptions& recipe) {
    Network network(*backend, small_alexnet(1));
    TrainingOptions one = options(true, false);
    one.batch_size = fitting_.size();
    one.epochs = 1;
    one.dropout = 0;
    one.weight_decay = 0;
    one.schedule = Schedule::constant;
    one.recipe = recipe;
    Trainer trainer(network, fitting_, few_, one);
    EXPECT_TRUE(trainer.run({}));
    const StateDict before = small_alexnet(1), after = state_of(network);
    std::vector<double> step;
    for (int64_t k = 0; k < 10; ++k)
      step.push_back(static_cast<double>(after.at("classifier.6.bias").values().data()[k]) -
                     static_cast<double>(before.at("classifier.6.bias").values().data()[k]));
    return step;
  };
  Network network(*backend, small_alexnet(1));
  const Evaluation start = evaluate(network, fitting_, Preprocess::for_image_size(64), fitting_.size());
  // -rate dL/dbias, L = mean over images of -sum targets log softmax, by central differences.
  const auto loss = [&](int64_t k, double h) {
    double sum = 0;
    for (int64_t n = 0; n < start.images; ++n) {
      const float* z = start.logits.data() + n * 10;
      const auto logit = [&](int64_t c) { return static_cast<double>(z[c]) + (c == k ? h : 0); };
      double exponentials = 0;
      for (int64_t c = 0; c < 10; ++c) exponentials += std::exp(logit(c));
      for (int64_t c = 0; c < 10; ++c) {
        const double target = smoothing / 10 + (c == start.labels[static_cast<size_t>(n)] ? 1 - smoothing : 0);
        sum += target * (std::log(exponentials) - logit(c));
      }
    }
    return sum / static_cast<double>(start.images);
  };
  const std::vector<double> smoothed = step_of({.label_smoothing = smoothing});
  const std::vector<double> faster = step_of({.label_smoothing = smoothing, .bias_lr = 4});
  for (int64_t k = 0; k < 10; ++k) {
    constexpr double h = 1e-4;
    const auto at = static_cast<size_t>(k);
    EXPECT_NEAR(smoothed[at], -rate * (loss(k, h) - loss(k, -h)) / (2 * h), 1e-7);
    EXPECT_NEAR(faster[at], 4 * smoothed[at], 1e-7);
  }
}

TEST_F(TrainerTest, PrunedWeightsAreZeroInTheAverages) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(1));
  TrainingOptions pruned = options(true, false);
  pruned.epochs = 1;
  pruned.pruning = {.enabled = true, .fraction = 0.5};
  pruned.recipe.ema = 0.9;
  Trainer trainer(network, train_, test_, pruned);
  ASSERT_TRUE(trainer.run({}));
  const StateDict model = trainer.model();
  for (const LayerSparsity& layer : trainer.sparsity()) {
    EXPECT_GE(2 * layer.zeros, layer.weights - 1);
    EXPECT_EQ(count_zeros(model.at(layer.layer + ".weight").values().view().span()), layer.zeros);
  }
}

TEST_F(TrainerTest, AveragesThatContradictTheirCheckpointAreRefused) {
  const auto backend = make_test_backend(0);
  const auto path = folder_->path() / "odd_average.safetensors";
  TrainingOptions averaged = options(true, false);
  averaged.recipe.ema = 0.9;
  {
    Network network(*backend, small_alexnet(1));
    Trainer trainer(network, fitting_, few_, averaged);
    ASSERT_FALSE(trainer.run({.on_step = [](const TrainingPosition&, int64_t, double) { return true; }}));
    trainer.save_checkpoint(path);
  }
  const auto restore = [&](const auto& change, double decay = 0.9) {
    Checkpoint checkpoint = load_checkpoint(path);
    change(checkpoint.average);
    Network network(*backend, small_alexnet(1));
    averaged.recipe.ema = decay;
    Trainer(network, fitting_, few_, averaged).restore(checkpoint);
  };
  EXPECT_NO_THROW(restore([](StateDict&) {}));
  EXPECT_THROW(restore([](StateDict& average) { average.parameters.clear(); }), FormatError);
  EXPECT_THROW(restore([](StateDict& average) { average.parameters.back().name = "x"; }), FormatError);
  EXPECT_THROW(restore([](StateDict& average) { average.parameters.back().value = Tensor<float>(); }), ShapeError);
  EXPECT_THROW(restore([](StateDict&) {}, 0), FormatError);
  for (const double wrong : {-0.1, 1.0, 2.0}) EXPECT_THROW(restore([](StateDict&) {}, wrong), UsageError);
}

TEST_F(TrainerTest, ARunThatStopsInATestGoesOnWithThatTest) {
  for (const bool freeze : {true, false}) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze);
    int heard_after = -1;
    TrainingOptions one = options(freeze, false);
    one.epochs = 1;
    expect_resumable(one, {.on_test = [&](int64_t done, int64_t total) {
                       EXPECT_EQ(total, test_.size());
                       const bool stop = heard_after >= 0 || done > 0;
                       heard_after += stop ? 1 : 0;
                       return stop;
                     }});
    EXPECT_EQ(heard_after, 0) << "it stops within a batch";
  }
}

TEST_F(TrainerTest, AResumedRunWithATeacherEndsInTheSameBits) {
  for (const auto& [freeze, flip] : ways) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze << " flip " << flip);
    TrainingOptions taught = options(freeze, flip);
    taught.distillation.weight = 0.7;
    expect_resumable(taught);
  }
}

TEST_F(TrainerTest, ANetworkThatIsItsOwnTeacherHasNothingToLearn) {
  const auto backend = make_test_backend(0);
  for (const auto& [freeze, flip] : ways) {
    SCOPED_TRACE(::testing::Message() << "freeze " << freeze << " flip " << flip);
    Network teacher(*backend, small_alexnet(1)), student(*backend, small_alexnet(1));
    TrainingOptions taught = options(freeze, flip);
    taught.weight_decay = 0;
    taught.dropout = 0;
    taught.distillation.weight = 1;
    Trainer trainer(student, train_, test_, taught);
    trainer.learn_from(teacher);
    ASSERT_TRUE(trainer.run({}));
    for (const EpochReport& epoch : trainer.position().history) EXPECT_NEAR(epoch.loss, 0, 1e-6);
    for (const Parameter& parameter : state_of(student).parameters)
      EXPECT_LE(
          testing::relative_error(parameter.values().view(), state_of(teacher).at(parameter.name).values().view()),
          1e-5)
          << parameter.name;
  }
}

TEST_F(TrainerTest, AStudentComesToPredictWhatItsTeacherDoes) {
  const auto backend = make_test_backend(0);
  Network teacher(*backend, small_alexnet(9)), student(*backend, small_alexnet(1));
  TrainingOptions taught = options(false, false);
  taught.epochs = 10;
  taught.dropout = 0;
  taught.distillation.weight = 1;
  Trainer trainer(student, train_, test_, taught);
  trainer.learn_from(teacher);
  ASSERT_TRUE(trainer.run({}));
  // The loss is a divergence, so it goes towards 0; a cross-entropy would keep a floor.
  const auto& history = trainer.position().history;
  EXPECT_LT(history.back().loss, 0.2 * history.front().loss);
}

TEST_F(TrainerTest, ATeacherOfWeightZeroChangesNothing) {
  const auto backend = make_test_backend(0);
  Network teacher(*backend, small_alexnet(9)), taught(*backend, small_alexnet(1)), alone(*backend, small_alexnet(1));
  Trainer with(taught, train_, test_, options(true, false)), without(alone, train_, test_, options(true, false));
  with.learn_from(teacher);
  ASSERT_TRUE(with.run({}));
  ASSERT_TRUE(without.run({}));
  EXPECT_TRUE(same_bits(state_of(taught), state_of(alone)));
}

TEST_F(TrainerTest, ATeacherOfNaNIsRefused) {
  const auto backend = make_test_backend(0);
  StateDict broken = small_alexnet(9);
  broken.at("classifier.6.bias").values().data()[0] = std::numeric_limits<float>::quiet_NaN();
  Network teacher(*backend, std::move(broken));
  for (const auto& [freeze, flip] : ways) {
    Network student(*backend, small_alexnet(1));
    TrainingOptions taught = options(freeze, flip);
    taught.distillation.weight = 0.5;
    Trainer trainer(student, train_, test_, taught);
    trainer.learn_from(teacher);
    EXPECT_THROW(trainer.run({}), FormatError);
  }
}

TEST_F(TrainerTest, ALastStepThatDivergesIsNoResult) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(1));
  TrainingOptions wild = options(false, false);
  wild.epochs = 1;
  wild.batch_size = 1000;
  wild.learning_rate = 9e5;
  wild.schedule = Schedule::constant;
  Trainer trainer(network, train_, test_, wild);
  EXPECT_THROW(trainer.run({}), Error);
  EXPECT_TRUE(trainer.position().history.empty());
}

TEST_F(TrainerTest, ACheckpointBehindTheLastBatchOfAnEpochResumes) {
  const auto backend = make_test_backend(0);
  const auto path = folder_->path() / "edge.safetensors";
  {
    Network network(*backend, small_alexnet(1));
    Trainer trainer(network, train_, test_, options(true, false));
    ASSERT_FALSE(trainer.run(
        {.on_step = [](const TrainingPosition& p, int64_t batches, double) { return p.batch == batches; }}));
    trainer.save_checkpoint(path);
  }
  Checkpoint checkpoint = load_checkpoint(path);
  Network network(*backend, std::move(checkpoint.parameters));
  Trainer trainer(network, train_, test_, checkpoint.options);
  trainer.restore(checkpoint);
  ASSERT_TRUE(trainer.run({}));
  EXPECT_EQ(trainer.position().history.size(), 3U);
  trainer.save_checkpoint(path);
  EXPECT_NO_THROW(load_checkpoint(path));
}

TEST_F(TrainerTest, ACheckpointThatContradictsItselfIsRefused) {
  const auto backend = make_test_backend(0);
  const auto path = folder_->path() / "odd.safetensors";
  TrainingOptions chosen = options(true, false);
  {
    Network network(*backend, small_alexnet(1));
    Trainer trainer(network, train_, test_, chosen);
    ASSERT_FALSE(trainer.run(
        {.on_step = [](const TrainingPosition& p, int64_t, double) { return p.epoch == 1 && p.batch == 3; }}));
    trainer.save_checkpoint(path);
  }
  const auto restore = [&](const auto& change) {
    Checkpoint checkpoint = load_checkpoint(path);
    change(checkpoint.position);
    Network network(*backend, small_alexnet(1));
    Trainer trainer(network, train_, test_, chosen);
    trainer.restore(checkpoint);
  };
  constexpr int64_t most = std::numeric_limits<int64_t>::max();
  EXPECT_NO_THROW(restore([](TrainingPosition&) {}));
  EXPECT_THROW(restore([](auto& p) { p.epoch = 3, p.batch = 0, p.history.clear(); }), FormatError);
  EXPECT_THROW(restore([](auto& p) { p.history.clear(); }), FormatError);
  EXPECT_THROW(restore([](auto& p) { p.epoch = most; }), UsageError);
  for (const int64_t wrong : {most, most - 1, -most - 1, int64_t{-1}}) {
    EXPECT_THROW(restore([&](auto& p) { p.batch = wrong; }), FormatError) << wrong;
    EXPECT_THROW(restore([&](auto& p) { p.step = wrong; }), FormatError) << wrong;
    EXPECT_THROW(restore([&](auto& p) { p.images = wrong; }), FormatError) << wrong;
    EXPECT_THROW(restore([&](auto& p) { p.correct = wrong; }), FormatError) << wrong;
    EXPECT_THROW(restore([&](auto& p) { p.loss_scale.skipped = wrong; }), FormatError) << wrong;
  }
  chosen.epochs = most;
  EXPECT_THROW(restore([](TrainingPosition&) {}), UsageError);
}

/// A name that no enum has must not become its first one, nor a number another.
TEST_F(TrainerTest, OptionsThatReadingWouldChangeAreRefused) {
  const std::string good = to_json(options(true, true));
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {R"("schedule":"warmup-cosine")", R"("schedule":"warmup-bosine")"},
           {R"("precision":"float32")", R"("precision":"float64")"},
           {R"("learned":"all")", R"("learned":"ball")"},
           {R"("image_size":64)", R"("image_size":4294967360)"},
           {R"("epochs":3)", R"("epochs":3.5)"},
           {R"("epochs":3)", R"("epochs":9223372036854775807)"},
           {R"("seed":)", R"("seed":-)"}}) {
    std::string text = good;
    ASSERT_NE(text.find(from), text.npos) << from << " in " << text;
    text.replace(text.find(from), from.size(), to);
    EXPECT_THROW(training_options_from_json(text), FormatError) << to;
  }
}

TEST_F(TrainerTest, LearnsTheStandIn) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "takes a minute; other tests train by the same code, and the optimised build learns";
#endif
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(2));
  TrainingOptions all = options(false, false);
  all.epochs = 15;
  all.dropout = 0;
  Trainer trainer(network, train_, test_, all);
  ASSERT_TRUE(trainer.run({}));
  const auto& history = trainer.position().history;
  EXPECT_LT(history.back().loss, 0.8 * history.front().loss);
  EXPECT_GT(history.back().test_accuracy, 0.2);  // chance is 0.1
}

TEST_F(TrainerTest, FrozenFeaturesDoNotChangeAndTheCacheIsCounted) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(3));
  Trainer trainer(network, train_, test_, options(true, false));
  ASSERT_TRUE(trainer.run({}));
  const StateDict before = small_alexnet(3), after = state_of(network);
  EXPECT_TRUE(std::ranges::equal(before.at("features.10.weight").values().view(),
                                 after.at("features.10.weight").values().view()));
  EXPECT_FALSE(std::ranges::equal(before.at("classifier.1.weight").values().view(),
                                  after.at("classifier.1.weight").values().view()));
  EXPECT_EQ(backend->meter().live(MemoryCategory::features),
            static_cast<size_t>((train_.size() + test_.size()) * network.feature_count() * 4));
}

TEST_F(TrainerTest, EvaluateCountsAndKeepsTheOrderOfTheData) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(4));
  const Preprocess preprocess = Preprocess::for_image_size(64);
  const Evaluation one_by_one = evaluate(network, test_, preprocess, 1);
  const Evaluation in_batches = evaluate(network, test_, preprocess, 33);
  EXPECT_EQ(one_by_one.images, test_.size());
  EXPECT_TRUE(std::ranges::equal(in_batches.labels, test_.labels));
  EXPECT_LE(testing::relative_error(in_batches.logits.view(), one_by_one.logits.view()), 1e-5);
  int64_t correct = 0;
  for (int64_t i = 0; i < test_.size(); ++i)
    correct += in_batches.predicted(i) == in_batches.labels[static_cast<size_t>(i)] ? 1 : 0;
  EXPECT_EQ(in_batches.correct, correct);
  EXPECT_THROW(evaluate(network, test_, preprocess, 10, [](int64_t done, int64_t) { return done >= 20; }), Interrupted);
}

TEST_F(TrainerTest, MirrorImagesAreEvaluatedAndAveraged) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(4));
  const Preprocess preprocess = Preprocess::for_image_size(64);
  Dataset turned = few_;
  for (size_t i = 0; i < turned.images.size(); ++i) {
    const Dataset::Image& image = turned.images[i];
    mirror_pixels({turned.pixels.data() + image.offset, static_cast<size_t>(image.width * image.height * 3)},
                  image.width);
  }
  const Evaluation plain = evaluate(network, few_, preprocess, 7);
  const Evaluation mirrored = evaluate(network, few_, preprocess, 7, {}, true);
  const Evaluation by_hand = evaluate(network, turned, preprocess, 7);
  EXPECT_TRUE(std::ranges::equal(mirrored.logits.view(), by_hand.logits.view()));
  EXPECT_FALSE(std::ranges::equal(mirrored.logits.view(), plain.logits.view()));
  const Evaluation mean = mean_of(plain, mirrored);
  double loss = 0;
  for (int64_t n = 0; n < mean.images; ++n) {
    double sum = 0;
    const auto logit = [&](int64_t k) {
      return 0.5 * (static_cast<double>(plain.logits.data()[10 * n + k]) +
                    static_cast<double>(mirrored.logits.data()[10 * n + k]));
    };
    for (int64_t k = 0; k < 10; ++k) {
      EXPECT_NEAR(mean.logits.data()[10 * n + k], logit(k), 1e-6);
      sum += std::exp(logit(k));
    }
    loss += std::log(sum) - logit(mean.labels[static_cast<size_t>(n)]);
  }
  EXPECT_NEAR(mean.loss, loss / static_cast<double>(mean.images), 1e-5);
  const Evaluation twice = mean_of(plain, plain);
  EXPECT_EQ(twice.correct, plain.correct);
  EXPECT_NEAR(twice.loss, plain.loss, 1e-6);
}

TEST_F(TrainerTest, LabelsBeyondTheHeadAreRefused) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(5, 7));
  EXPECT_THROW(Trainer(network, train_, test_, options(true, false)), UsageError);
}

TEST_F(TrainerTest, DivergenceIsReported) {
  const auto backend = make_test_backend(0);
  Network network(*backend, small_alexnet(6));
  TrainingOptions wild = options(false, false);
  wild.learning_rate = 1e5;
  wild.schedule = Schedule::constant;
  Trainer trainer(network, train_, test_, wild);
  EXPECT_THROW(trainer.run({}), Error);
}

TEST_F(TrainerTest, WhatIsNoCheckpointIsRefused) {
  save_state_dict(folder_->path() / "model.safetensors", small_alexnet(7));
  EXPECT_THROW(load_checkpoint(folder_->path() / "model.safetensors"), FormatError);
  EXPECT_THROW(training_options_from_json("{\"epochs\": 3"), FormatError);
  EXPECT_THROW(training_options_from_json("{}"), FormatError);
  std::string text = to_json(options(true, true));
  EXPECT_EQ(to_json(training_options_from_json(text)), text);
  text.replace(text.find("\"batch_size\":32"), 15, "\"batch_size\":-2");
  EXPECT_THROW(training_options_from_json(text), FormatError);
}

TEST(Schedule, RisesAndFalls) {
  EXPECT_EQ(learning_rate_factor(Schedule::constant, 0, 100), 1.0);
  EXPECT_EQ(learning_rate_factor(Schedule::constant, 99, 100), 1.0);
  EXPECT_EQ(learning_rate_factor(Schedule::cosine, 0, 100), 1.0);
  EXPECT_NEAR(learning_rate_factor(Schedule::cosine, 50, 100), 0.5, 1e-12);
  EXPECT_NEAR(learning_rate_factor(Schedule::cosine, 99, 100), 0.5 * (1 + std::cos(0.99 * M_PI)), 1e-12);
  EXPECT_NEAR(learning_rate_factor(Schedule::warmup, 0, 100), 0.2, 1e-12);  // 5 steps
  EXPECT_EQ(learning_rate_factor(Schedule::warmup, 5, 100), 1.0);
  EXPECT_EQ(learning_rate_factor(Schedule::warmup_cosine, 5, 100), 1.0);
  EXPECT_GT(learning_rate_factor(Schedule::warmup_cosine, 99, 100), 0.0);
  EXPECT_EQ(parse_schedule("warmup-cosine"), Schedule::warmup_cosine);
  EXPECT_THROW(parse_schedule("linear"), UsageError);
}

}  // namespace
}  // namespace nibblenet
