#include <fnmatch.h>
#include <signal.h>

#include "tests/support/small_network.h"
#include "tests/tools/run.h"
#include "training/first_filters.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

/// One thread, small images: an epoch takes a tenth of a second.
class FinetuneTest : public ToolsTest {
 protected:
  static inline const std::string finetune = "finetune --data standin --threads 1 ";
  static inline const std::string from_small = finetune + "--image-size 64 --init small.safetensors ";
  /// Training leaves the weights unchanged to the bit, so that only a reset shows.
  static inline const std::string still = "--epochs 1 --lr 1e-30 ";

  static bool same_layer(const StateDict& a, const StateDict& b, const std::string& layer) {
    return std::ranges::equal(a.at(layer + ".weight").values().view(), b.at(layer + ".weight").values().view()) &&
           std::ranges::equal(a.at(layer + ".bias").values().view(), b.at(layer + ".bias").values().view());
  }
  static std::vector<std::string> changed_layers(const StateDict& a, const StateDict& b) {
    std::vector<std::string> changed;
    for (const std::string& name : layer_names(alexnet))
      if (!same_layer(a, b, name)) changed.push_back(name);
    return changed;
  }
};

TEST_F(FinetuneTest, WritesModelCheckpointAndJson) {
  const Outcome outcome = succeed(from_small + "--epochs 2 --json report.json");
  const auto digits = [](int count) {
    std::string pattern;
    for (int i = 0; i < count; ++i) pattern += "[0-9]";
    return pattern;
  };
  const std::string name = "model_" + digits(8) + "_" + digits(6) + "_final_frozen_alexnet.safetensors";
  std::vector<std::string> models;
  for (const auto& entry : fs::directory_iterator(at("weights")))
    if (fnmatch(name.c_str(), entry.path().filename().c_str(), 0) == 0) models.push_back(entry.path().string());
  ASSERT_EQ(models.size(), 1U) << outcome;
  const nlohmann::json report = json("report.json");
  EXPECT_EQ(report.at("output"), models[0]);
  EXPECT_TRUE(fs::exists(report.at("checkpoint").get<std::string>()));
  EXPECT_EQ(report.at("device"), "cpu");
  EXPECT_EQ(report.at("train_images"), 200);
  EXPECT_EQ(report.at("test_images"), 100);
  ASSERT_EQ(report.at("epochs").size(), 2U);
  for (const auto& epoch : report.at("epochs")) {
    EXPECT_GT(epoch.at("loss"), 0.0);
    EXPECT_GT(epoch.at("images_per_second"), 0.0);
    EXPECT_GE(epoch.at("test_accuracy"), 0.0);
    EXPECT_LE(epoch.at("test_accuracy"), 1.0);
  }
  EXPECT_EQ(report.at("test_accuracy"), report.at("epochs").back().at("test_accuracy"));
  for (const char* word : {"epoch 1/2: loss ", "epoch 2/2: loss ", "test accuracy ", "images/s", models[0].c_str()})
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word << outcome;
  EXPECT_NE(outcome.out.find(fmt::format("the checkpoint stays: {}, {:.1f} MB; only --resume",
                                         report.at("checkpoint").get<std::string>(),
                                         static_cast<double>(fs::file_size(report.at("checkpoint"))) / 1e6)),
            std::string::npos)
      << outcome;
  // The model knows its image size: what evaluates it need not be told.
  EXPECT_EQ(load_state_dict(models[0]).metadata.at("image_size"), "64");
  // Features are frozen when a model is given.
  EXPECT_EQ(changed_layers(model("small.safetensors"), load_state_dict(models[0])), classifier_names(alexnet));
}

TEST_F(FinetuneTest, TheSameCommandGivesTheSameBits) {
  for (const char* out : {"a", "b"}) succeed(from_small + "--epochs 2 --seed 5 --out " + out + ".safetensors");
  succeed(from_small + "--epochs 2 --seed 6 --out c.safetensors");
  EXPECT_TRUE(same_bits(model("a.safetensors"), model("b.safetensors")));
  EXPECT_FALSE(same_bits(model("a.safetensors"), model("c.safetensors")));
}

TEST_F(FinetuneTest, FreezeNoneTrainsEverything) {
  succeed(from_small + "--epochs 1 --batch 20 --freeze none --out new/folder/all.safetensors");
  EXPECT_EQ(changed_layers(model("small.safetensors"), model("new/folder/all.safetensors")).size(), 8U);
}

TEST_F(FinetuneTest, StartsFromRandomWeights) {
  succeed(finetune + "--image-size 64 --epochs 1 --train-limit 10 --test-limit 10 --out random.safetensors");
  const StateDict random = model("random.safetensors");
  EXPECT_EQ(class_count(random), 10);
  EXPECT_EQ(random.at("classifier.1.weight").shape(), (Shape{4096, 9216}));
  EXPECT_EQ(changed_layers(random_network(alexnet, 10, 0), random).size(), 8U);
}

TEST_F(FinetuneTest, StartsFromADequantizedPackedModel) {
  succeed("pack small.safetensors --bits 8 -o packed.safetensors");
  succeed(finetune + "--image-size 64 --init packed.safetensors --out out.safetensors " + still);
  const StateDict out = model("out.safetensors");
  const StateDict packed = dequantized(model("packed.safetensors"));
  for (const Parameter& parameter : packed.parameters)  // zeros may have moved by the learning rate
    EXPECT_LE(relative_error(out.at(parameter.name).values().view(), parameter.values().view()), 1e-20);
}

TEST_F(FinetuneTest, ResetReinitialisesWhatItSays) {
  struct Case {
    std::string flags;
    std::vector<std::string> changed;
  };
  const std::vector<std::string> tail = {"classifier.4", "classifier.6"};
  const std::vector<Case> cases = {{"--init small.safetensors", {}},
                                   {"--init small.safetensors --reset none", {}},
                                   {"--init small.safetensors --reset tail", tail},
                                   {"--init small.safetensors --reset classifier", classifier_names(alexnet)},
                                   {"--init seven.safetensors", tail},
                                   {"--init seven.safetensors --reset tail", tail},
                                   {"--init seven.safetensors --reset classifier", classifier_names(alexnet)}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.flags);
    succeed(finetune + "--image-size 64 --out out.safetensors " + still + c.flags);
    const StateDict before = model(c.flags.substr(7, 17)), after = model("out.safetensors");
    EXPECT_EQ(changed_layers(before, after), c.changed);
    EXPECT_EQ(class_count(after), 10);
    if (!c.changed.empty()) {
      EXPECT_EQ(after.at("classifier.4.weight").shape(), (Shape{1024, 67}));
    }
  }
  refuse(finetune + "--image-size 64 --init seven.safetensors --reset none", "--reset none", 2);
}

TEST_F(FinetuneTest, TakesTheThreadsThatOpenMpReallyGives) {
  const std::string line =
      "finetune --data standin --image-size 64 --init small.safetensors --freeze none --batch 20 "
      "--epochs 1 --threads 2 --out ";
  const StateDict alone = [&] {
    succeed(from_small + "--freeze none --batch 20 --epochs 1 --out alone.safetensors");
    return model("alone.safetensors");
  }();
  environment_.emplace_back("OMP_THREAD_LIMIT=1");
  const Outcome limited = succeed(line + "limited.safetensors");
  EXPECT_NE(limited.out.find("CPU, 1 threads"), std::string::npos) << limited;
  EXPECT_TRUE(same_bits(alone, model("limited.safetensors")));
  environment_.back() = "OMP_DYNAMIC=true";
  succeed(line + "dynamic.safetensors");
}

TEST_F(FinetuneTest, ThreadsFollowTheEnvironment) {
  environment_.emplace_back("OMP_NUM_THREADS=3");
  const std::string line =
      "finetune --data standin --image-size 64 --init small.safetensors --epochs 1 --out out.safetensors ";
  EXPECT_NE(succeed(line).out.find("CPU, 3 threads"), std::string::npos);
  EXPECT_NE(succeed(line + "--threads 1").out.find("CPU, 1 threads"), std::string::npos);
}

TEST_F(FinetuneTest, LimitsTakeTheSameNumberOfEveryClass) {
  const std::string line = from_small + "--out out.safetensors --json out.json " + still;
  succeed(line + "--train-limit 25 --test-limit 10");
  EXPECT_EQ(json("out.json").at("train_images"), 20);
  EXPECT_EQ(json("out.json").at("test_images"), 10);
  refuse(line + "--train-limit 3", "3", 2);
  refuse(line + "--test-limit 9", "9", 2);
}

TEST_F(FinetuneTest, AnInterruptedRunEndsInTheSameBits) {
  const std::string line = from_small +
                           "--freeze none --augment flip-shift --schedule warmup-cosine --weight-decay 1e-4 --batch 20 "
                           "--epochs 20 --out ";
  succeed(line + "whole.safetensors");

  Child child(command(line + "cut.safetensors"), at(""), environment_, at(".cut").string());
  ASSERT_TRUE(child.wait_for("epoch 2/20")) << child.wait();
  child.send(SIGINT);
  const Outcome stopped = child.wait();
  EXPECT_EQ(stopped.code, 130) << stopped;
  EXPECT_NE(stopped.err.find("--resume cut.checkpoint.safetensors"), std::string::npos) << stopped;
  EXPECT_FALSE(fs::exists(at("cut.safetensors")));

  for (const std::string flag : {"--lr", "--init", "--batch", "--seed", "--train-limit", "--image-size"})
    refuse(finetune + "--resume cut.checkpoint.safetensors " + flag + " 100", flag + " cannot be changed", 2);
  for (const std::string flag :
       {"--freeze none", "--schedule cosine", "--reset tail", "--augment none", "--precision float16"})
    refuse(finetune + "--resume cut.checkpoint.safetensors " + flag, "cannot be changed", 2);

  succeed(finetune + "--resume cut.checkpoint.safetensors");
  EXPECT_TRUE(same_bits(model("whole.safetensors"), model("cut.safetensors")));
}

TEST_F(FinetuneTest, ResumeMayRaiseTheEpochs) {
  succeed(from_small + "--epochs 3 --out whole.safetensors");
  succeed(from_small + "--epochs 1 --out short.safetensors");
  succeed(finetune + "--resume short.checkpoint.safetensors --epochs 3 --out longer.safetensors --json longer.json");
  EXPECT_EQ(json("longer.json").at("epochs").size(), 3U);
  EXPECT_TRUE(same_bits(model("whole.safetensors"), model("longer.safetensors")));
}

TEST_F(FinetuneTest, ValidationChoosesTheEpochAndTestsOnce) {
  const std::string line = from_small + "--validation --batch 20 --freeze none --lr 0.05 ";
  const Outcome outcome = succeed(line + "--epochs 3 --out chosen.safetensors --json report.json");
  const nlohmann::json report = json("report.json");
  EXPECT_EQ(report.at("train_images"), 180);
  EXPECT_EQ(report.at("test_images"), 100);
  const nlohmann::json& chosen = report.at("validation");
  EXPECT_EQ(chosen.at("images"), 20);
  ASSERT_EQ(report.at("epochs").size(), 3U);
  for (const auto& epoch : report.at("epochs")) {
    EXPECT_FALSE(epoch.contains("test_accuracy"));
    EXPECT_FALSE(epoch.contains("test_loss"));
    EXPECT_LE(epoch.at("validation_accuracy"), chosen.at("accuracy"));
  }
  const nlohmann::json& best = report.at("epochs").at(chosen.at("best_epoch").get<size_t>() - 1);
  EXPECT_EQ(best.at("validation_accuracy"), chosen.at("accuracy"));
  EXPECT_EQ(best.at("validation_loss"), chosen.at("loss"));
  EXPECT_LT(chosen.at("accuracy_interval").at(0), chosen.at("accuracy"));
  EXPECT_FALSE(chosen.at("ended_early"));
  for (const char* text : {"180 training, 20 validation and 100 test images", "validation accuracy", "is the best",
                           "(the best so far)", "tested once"})
    EXPECT_NE(outcome.out.find(text), std::string::npos) << text << outcome;
  EXPECT_EQ(model("chosen.safetensors").metadata.at("validation"),
            fmt::format("20 training images held out; they chose epoch {} of 3", chosen.at("best_epoch").dump()));

  for (const auto& [split, accuracy, loss] : {std::tuple{"validation", chosen.at("accuracy"), chosen.at("loss")},
                                              std::tuple{"test", report.at("test_accuracy"), report.at("test_loss")}}) {
    succeed(fmt::format("eval chosen.safetensors --data standin --threads 1 --batch 20 --split {} --json eval.json",
                        split));
    EXPECT_EQ(json("eval.json").at("accuracy"), accuracy) << split;
    EXPECT_EQ(json("eval.json").at("loss"), loss) << split;
  }

  succeed(line + "--epochs 1 --out cut.safetensors");
  refuse(finetune + "--resume cut.checkpoint.safetensors --validation", "--validation cannot be changed", 2);
  succeed(finetune + "--resume cut.checkpoint.safetensors --epochs 3");
  EXPECT_TRUE(same_bits(model("chosen.safetensors"), model("cut.safetensors")));
  EXPECT_EQ(model("chosen.safetensors").metadata.at("validation"), model("cut.safetensors").metadata.at("validation"));

  const Outcome warned = succeed(
      "finetune --data standin --threads 1 --init chosen.safetensors --validation --out "
      "again.safetensors " +
      still);
  EXPECT_EQ(warned.err.find("warning"), std::string::npos) << warned;
  succeed(from_small + still + "--out all.safetensors");
  EXPECT_FALSE(model("all.safetensors").metadata.contains("validation"));
  const Outcome seen = succeed(finetune + "--init all.safetensors --validation --out seen.safetensors " + still);
  EXPECT_NE(seen.err.find("all.safetensors was trained without --validation"), std::string::npos) << seen;
}

TEST_F(FinetuneTest, PatienceEndsTrainingEarly) {
  refuse(from_small + "--patience 2", "--patience needs --validation", 2);
  refuse(from_small + "--validation --patience -1", "--patience", 2);
  const Outcome outcome = succeed(from_small +
                                  "--validation --patience 2 --epochs 9 --lr 1e-30 --out a.safetensors "
                                  "--json report.json");
  EXPECT_NE(outcome.out.find("ends early: 2 epochs were no better than epoch 1"), std::string::npos) << outcome;
  EXPECT_EQ(json("report.json").at("epochs").size(), 3U);
  EXPECT_EQ(json("report.json").at("validation").at("ended_early"), true);
  succeed(finetune + "--resume a.checkpoint.safetensors --patience 3 --json more.json");
  EXPECT_EQ(json("more.json").at("epochs").size(), 4U);
}

TEST_F(FinetuneTest, ValidationInPackedFormKeepsThePackedWeights) {
  const std::string line =
      from_small + "--validation --quantize kmeans:3:channel:f16 --prune 0.5 --batch 20 --epochs 40 --out ";
  succeed(line + "whole.safetensors --json report.json");
  succeed("eval whole.safetensors --data standin --threads 1 --batch 20 --json eval.json");
  EXPECT_EQ(json("eval.json").at("accuracy"), json("report.json").at("test_accuracy"));
  EXPECT_EQ(json("eval.json").at("loss"), json("report.json").at("test_loss"));
  EXPECT_GT(json("report.json").at("validation").at("best_epoch"), 24) << "pruning goes on until then";
  const nlohmann::json sparsity = json("report.json").at("sparsity");
  for (const auto& [layer, zeros] : sparsity.items()) EXPECT_GE(zeros, 0.49) << layer;
  Child child(command(line + "cut.safetensors"), at(""), environment_, at(".cut").string());
  ASSERT_TRUE(child.wait_for("epoch 26/40")) << child.wait();
  child.send(SIGINT);
  EXPECT_EQ(child.wait().code, 130);
  succeed(finetune + "--resume cut.checkpoint.safetensors");
  EXPECT_TRUE(same_bits(dequantized(model("whole.safetensors")), dequantized(model("cut.safetensors"))));
}

TEST_F(FinetuneTest, TrainsInPackedFormAndEvalFindsTheSame) {
  succeed("pack small.safetensors --method kmeans --bits 2 --layer features.*=nf4 -o packed.safetensors");
  const std::vector<std::string> lines = {
      from_small + "--quantize kmeans:2:channel:f16 --layer classifier.6=linear:4 ",
      finetune + "--image-size 64 --init packed.safetensors --quantize packed ",
      finetune + "--image-size 64 --init packed.safetensors --quantize linear:3 --freeze none --prune 0.5 "};
  for (const std::string& line : lines) {
    SCOPED_TRACE(line);
    succeed(line + "--epochs 2 --batch 50 --out qat.safetensors --json report.json");
    succeed("eval qat.safetensors --data standin --threads 1 --batch 50 --json eval.json");
    EXPECT_EQ(json("eval.json").at("accuracy"), json("report.json").at("test_accuracy"));
    EXPECT_EQ(json("eval.json").at("loss"), json("report.json").at("epochs").back().at("test_loss"));
    EXPECT_EQ(json("report.json").at("packed"), true);
  }
  EXPECT_EQ(to_string(model("qat.safetensors").at("features.3.weight").packed_values().scheme), "linear:3:channel");
}

TEST_F(FinetuneTest, PackedFeaturesThatAreFrozenStayAsTheyAre) {
  succeed("pack small.safetensors --bits 3 -o packed.safetensors");
  succeed(finetune + "--image-size 64 --init packed.safetensors --quantize kmeans:2 --epochs 1 --out qat.safetensors");
  const StateDict before = model("packed.safetensors"), after = model("qat.safetensors");
  for (const std::string& layer : feature_names(alexnet)) {
    EXPECT_EQ(before.at(layer + ".weight").packed_values().scheme, after.at(layer + ".weight").packed_values().scheme);
    EXPECT_EQ(before.at(layer + ".weight").packed_values().codes, after.at(layer + ".weight").packed_values().codes);
  }
  EXPECT_EQ(to_string(after.at("classifier.4.weight").packed_values().scheme), "kmeans:2:channel");
}

TEST_F(FinetuneTest, PrunesAndSaysWhatItPruned) {
  const Outcome outcome = succeed(from_small +
                                  "--epochs 2 --prune 0.8 --prune-layer classifier.6=0.5 --out sparse.safetensors "
                                  "--json report.json");
  for (const char* text : {" % zeros", "classifier.1: 19296 of 24120 weights are 0 (80.00 %)"})
    EXPECT_NE(outcome.out.find(text), std::string::npos) << text << outcome;
  EXPECT_NEAR(json("report.json").at("sparsity").at("classifier.6"), 0.5, 0.01);
  EXPECT_NEAR(json("report.json").at("epochs").back().at("sparsity"), 0.8, 0.01);
}

TEST_F(FinetuneTest, AnInterruptedRunInPackedFormEndsInTheSameBits) {
  const std::string line = from_small + "--quantize kmeans:3:channel:f16 --prune 0.7 --epochs 40 --batch 20 --out ";
  succeed(line + "whole.safetensors");
  Child child(command(line + "cut.safetensors"), at(""), environment_, at(".cut").string());
  ASSERT_TRUE(child.wait_for("epoch 2/40")) << child.wait();
  child.send(SIGINT);
  EXPECT_EQ(child.wait().code, 130);
  refuse(finetune + "--resume cut.checkpoint.safetensors --quantize packed", "--quantize cannot be changed", 2);
  refuse(finetune + "--resume cut.checkpoint.safetensors --prune 0.5", "--prune cannot be changed", 2);
  succeed(finetune + "--resume cut.checkpoint.safetensors");
  EXPECT_TRUE(same_bits(dequantized(model("whole.safetensors")), dequantized(model("cut.safetensors"))));
}

TEST_F(FinetuneTest, LearnsFromAnotherModelAndGoesOnFromIt) {
  fs::create_directory(at("float"));
  fs::copy_file(at("small.safetensors"), at("float/teacher.safetensors"));
  succeed("pack small.safetensors --method kmeans --bits 2 -o packed.safetensors");
  const std::string line = finetune +
                           "--image-size 64 --init packed.safetensors --quantize packed --freeze none --dropout 0 "
                           "--distill float/teacher.safetensors --batch 50 --out ";
  const Outcome whole = succeed(line + "whole.safetensors --epochs 3 --json report.json");
  const std::string teacher = at("float/teacher.safetensors").string();
  EXPECT_NE(whole.out.find("learns from " + teacher), std::string::npos) << whole;
  EXPECT_EQ(json("report.json").at("options").at("distillation").at("teacher"), teacher);
  const nlohmann::json told = nlohmann::json::parse(model("whole.safetensors").metadata.at("training_options"));
  EXPECT_EQ(told.at("distillation").at("teacher"), "teacher.safetensors") << "a model travels, folders do not";
  // The loss is the divergence from the float network's predictions, not the labels' cross-entropy
  // of about log 10.
  EXPECT_LT(json("report.json").at("epochs").back().at("loss"), 0.5);

  succeed(line + "cut.safetensors --epochs 1");
  succeed(finetune + "--resume cut.checkpoint.safetensors --epochs 3");
  EXPECT_TRUE(same_bits(dequantized(model("whole.safetensors")), dequantized(model("cut.safetensors"))));

  refuse(finetune + "--resume cut.checkpoint.safetensors --distill small.safetensors", "--distill cannot be changed",
         2);
  fs::copy_file(at("whole.safetensors"), at("float/teacher.safetensors"), fs::copy_options::overwrite_existing);
  refuse(finetune + "--resume cut.checkpoint.safetensors --epochs 4", "teacher.safetensors is not the model", 2);
  fs::remove(at("float/teacher.safetensors"));
  refuse(finetune + "--resume cut.checkpoint.safetensors --epochs 4", "teacher.safetensors", 1);
}

TEST_F(FinetuneTest, ATeacherMayBePacked) {
  succeed("pack small.safetensors --bits 4 -o packed.safetensors");
  const std::string line = from_small + "--distill packed.safetensors --batch 50 --out ";
  succeed(line + "whole.safetensors --epochs 2");
  succeed(line + "cut.safetensors --epochs 1");
  succeed(finetune + "--resume cut.checkpoint.safetensors --epochs 2");
  EXPECT_TRUE(same_bits(model("whole.safetensors"), model("cut.safetensors")));
}

TEST_F(FinetuneTest, GoesOnFromTheTeacherUnderItsKey) {
  StateDict two;
  for (const char* prefix : {"gen.", "disc."})
    for (const Parameter& parameter : model("small.safetensors").parameters)
      two.parameters.push_back({.name = prefix + parameter.name, .value = parameter.dequantized()});
  for (Parameter& parameter : two.parameters)
    if (parameter.name.starts_with("gen."))
      for (float& value : parameter.values().view().span()) value = -value;
  save_pth(at("two.pth"), two);
  const std::string line = from_small + "--distill two.pth --key disc --batch 50 --out ";
  succeed(line + "whole.safetensors --epochs 2");
  succeed(line + "cut.safetensors --epochs 1");
  succeed(finetune + "--resume cut.checkpoint.safetensors --epochs 2");
  EXPECT_TRUE(same_bits(model("whole.safetensors"), model("cut.safetensors")));
  refuse(finetune + "--resume cut.checkpoint.safetensors --epochs 3 --key gen", "is not the model", 2);
}

TEST_F(FinetuneTest, LearnsScalesOfAPackedModel) {
  succeed("pack small.safetensors --method kmeans --bits 2 --scale f16 -o packed.safetensors");
  const std::string line = finetune + "--image-size 64 --init packed.safetensors --quantize packed --learn scales ";
  succeed(line + "--freeze none --epochs 2 --batch 50 --out scales.safetensors --json report.json");
  const StateDict before = model("packed.safetensors"), after = model("scales.safetensors");
  for (const std::string& layer : layer_names(alexnet)) {
    const PackedTensor &was = before.at(layer + ".weight").packed_values(),
                       &is = after.at(layer + ".weight").packed_values();
    EXPECT_EQ(was.codes, is.codes) << layer;
    EXPECT_NE(was.scales, is.scales) << layer;
    EXPECT_EQ(was.scheme, is.scheme) << layer;
  }
  EXPECT_EQ(json("report.json").at("options").at("learning_rate"), 0.003);
  succeed("eval scales.safetensors --data standin --threads 1 --batch 50 --json eval.json");
  EXPECT_EQ(json("eval.json").at("loss"), json("report.json").at("epochs").back().at("test_loss"));

  refuse(line + "--momentum 0.5", "--momentum is SGD's", 2);
  refuse(line + "--prune 0.5", "--learn scales keeps the codes", 2);
  refuse(from_small + "--learn scales", "--learn scales needs --quantize", 2);
  refuse(finetune + "--resume scales.checkpoint.safetensors --learn all", "--learn cannot be changed", 2);
}

TEST_F(FinetuneTest, RefusesTeachersThatItCannotLearnFrom) {
  save_state_dict(at("three.safetensors"), small_alexnet(1, 3));
  refuse(from_small + "--distill three.safetensors", "--distill three.safetensors: it tells 3 classes apart", 2);
  refuse(from_small + "--distill small.safetensors --distill-weight 1.5", "--distill-weight must lie in [0, 1]", 2);
  refuse(from_small + "--distill-weight 0.5", "--distill-weight needs --distill", 2);
  refuse(from_small + "--distill missing.safetensors", "missing.safetensors", 1);
}

TEST_F(FinetuneTest, RefusesWhatCannotBeTrainedOrPruned) {
  refuse(from_small + "--precision float16 --device cpu", "the CPU computes in float32", 2);
  refuse(from_small + "--quantize stable-embedding", "classifier.1.weight: stable-embedding", 2);
  refuse(from_small + "--quantize packed", "--quantize packed: features.0.weight is not packed", 2);
  refuse(from_small + "--quantize kmeans:9", "9", 2);
  refuse(from_small + "--quantize kmeans:2 --layer head=linear:4", "--layer head", 2);
  refuse(from_small + "--layer classifier.1=linear:4", "--layer needs --quantize", 2);
  refuse(from_small + "--prune 1", "--prune", 2);
  refuse(from_small + "--prune -0.1", "--prune", 2);
  refuse(from_small + "--prune-layer classifier.6=0.5", "--prune-layer needs --prune", 2);
  refuse(from_small + "--prune 0.5 --prune-layer features.0=0.5", "no layer of this name is trained", 2);
  refuse(from_small + "--prune 0.5 --prune-layer classifier.6", "PATTERN=FRACTION", 2);
  refuse(from_small + "--prune 0.5 --prune-layer classifier.6=1.5", "--prune-layer classifier.6", 2);
}

TEST_F(FinetuneTest, ModelsAndCheckpointsAreNotMixedUp) {
  refuse(finetune + "--resume small.safetensors", "small.safetensors is not a checkpoint", 1);
  succeed(from_small + still + "--out out.safetensors");
  const Outcome packed = succeed("pack out.checkpoint.safetensors -o packed.safetensors");
  EXPECT_NE(packed.out.find("out.checkpoint.safetensors is a checkpoint"), std::string::npos);
  succeed("inspect packed.safetensors --verify");
}

/// The options reach the trainer, the model says what it was trained with, and a checkpoint keeps
/// averages apart from the network, which is what it is as a model.
TEST_F(FinetuneTest, AveragesAreTheModelAndTheCheckpointHasBoth) {
  succeed(from_small + "--epochs 1 --batch 50 --ema 0.9 --out out.safetensors --json report.json");
  EXPECT_EQ(json("report.json").at("options").at("recipe").at("ema"), 0.9);
  const StateDict out = model("out.safetensors"), checkpoint = model("out.checkpoint.safetensors");
  EXPECT_EQ(nlohmann::json::parse(out.metadata.at("training_options")).at("recipe").at("ema"), 0.9);
  EXPECT_FALSE(same_layer(out, checkpoint, "classifier.6"));
  for (const char* name : {"classifier.6.weight", "classifier.6.bias"})
    EXPECT_TRUE(std::ranges::equal(out.at(name).values().view(),
                                   checkpoint.at(std::string("average.") + name).values().view()));
  succeed("eval out.checkpoint.safetensors --data standin --threads 1");
  refuse(from_small + "--ema 0.9 --quantize linear:4", "--ema averages float weights", 2);
  refuse(from_small + "--ema 1", "--ema must lie in [0, 1)", 2);
  refuse(finetune + "--resume out.checkpoint.safetensors --ema 0.5", "--ema cannot be changed", 2);
}

TEST_F(FinetuneTest, ARecipeIsSaidAndSettled) {
  succeed(from_small +
          "--epochs 1 --batch 50 --label-smoothing 0.1 --mixup 0.2 --cutmix 1 --bias-lr 8 --out out.safetensors "
          "--json report.json");
  const nlohmann::json recipe = json("report.json").at("options").at("recipe");
  EXPECT_EQ(recipe.at("label_smoothing"), 0.1);
  EXPECT_EQ(recipe.at("mixup"), 0.2);
  EXPECT_EQ(recipe.at("cutmix"), 1.0);
  EXPECT_EQ(recipe.at("bias_lr"), 8.0);
  for (const char* option : {"--label-smoothing", "--mixup", "--cutmix", "--bias-lr"}) {
    refuse(from_small + option + " -1", option, 2);
    refuse(finetune + "--resume out.checkpoint.safetensors " + option + " 0.5", std::string(option) + " cannot be", 2);
  }
  refuse(from_small + "--quantize linear:4 --learn scales --bias-lr 2", "--bias-lr is SGD's", 2);
}

TEST_F(FinetuneTest, ResetAllTakesNothingButTheSizes) {
  succeed(from_small + "--reset all --seed 4 --out drawn.safetensors " + still);
  StateDict drawn = model("small.safetensors");
  const StateDict out = model("drawn.safetensors");
  EXPECT_EQ(changed_layers(drawn, out).size(), 8U);
  draw_all_layers(drawn, 10, 4);
  for (const std::string& name : layer_names(alexnet))  // a step of 1e-30 moves what is 0
    EXPECT_LE(relative_error(out.at(name + ".weight").values().view(), drawn.at(name + ".weight").values().view()),
              1e-20);
  succeed(from_small + "--reset all --seed 4 --first-filters whitened --out whitened.safetensors --json report.json " +
          still);
  EXPECT_EQ(changed_layers(out, model("whitened.safetensors")).front(), "features.0");
  EXPECT_EQ(json("report.json").at("options").at("recipe").at("whitened"), true);
  refuse(from_small + "--first-filters whitened", "--first-filters whitened replaces filters", 2);
  refuse(finetune + "--resume drawn.checkpoint.safetensors --first-filters whitened", "cannot be changed", 2);
}

/// Both accuracies are there; the plain one is what it is without the option, with a folded first
/// layer, too.
TEST_F(FinetuneTest, EvalMirrorAddsAnAccuracy) {
  for (const std::string fold : {"", " --fold-first"}) {
    const std::string line = "eval small.safetensors --data standin --threads 1" + fold;
    succeed(line + " --json plain.json");
    const Outcome outcome = succeed(line + " --mirror --json both.json");
    nlohmann::json plain = json("plain.json"), both = json("both.json");
    EXPECT_TRUE(plain.at("mirror").is_null());
    for (const char* same : {"accuracy", "loss", "correct"}) EXPECT_EQ(plain.at(same), both.at(same));
    EXPECT_EQ(both.at("mirror").at("accuracy"), both.at("mirror").at("correct").get<double>() / 100);
    EXPECT_NE(both.at("mirror").at("loss"), both.at("loss"));
    for (const char* words : {"\naccuracy ", "mirror image, logits averaged: accuracy "})
      EXPECT_NE(outcome.out.find(words), std::string::npos) << outcome;
  }
}

}  // namespace
}  // namespace nibblenet::testing
