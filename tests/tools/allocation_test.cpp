#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <regex>
#include <thread>

#include "tests/support/small_network.h"
#include "tests/tools/run.h"
#include "tools/common/data_search.h"
#include "tools/training/bit_allocation.h"

// pack --target-bits, --target-file, --target-resident, --max-loss.

namespace nibblenet {
namespace {

using ::testing::HasSubstr;

class Allocation : public testing::ToolsTest {
 protected:
  nlohmann::json allocate(const std::string& target) {
    succeed("pack small.safetensors --data standin --target-images 40 -o packed.safetensors --json pack.json " +
            target);
    return json("pack.json");
  }
};

TEST_F(Allocation, BitsAWeightStayWithinTheTarget) {
  double narrower = 0;
  for (const double target : {2.8, 3.5, 4.5, 7.0}) {
    const nlohmann::json report = allocate("--target-bits " + std::to_string(target));
    const double bits = report.at("size").at("bits_per_weight");
    EXPECT_LE(bits, target);
    EXPECT_GT(bits, narrower) << "more room is used";
    narrower = bits;
    EXPECT_EQ(report.at("allocation").at("layers").size(), 8U);
    // The widths of the defaults: those of a convolution are 4, 6, 7 and 8 bits.
    EXPECT_EQ(report.at("allocation").at("layers")[0].at("weighed").size(), 4U);
    EXPECT_EQ(report.at("allocation").at("layers")[7].at("weighed").size(), 7U);
  }
}

/// Images that the network has not learnt from choose, and those that it has learnt from calibrate.
TEST_F(Allocation, AModelTrainedWithValidationIsPackedByHeldOutImages) {
  succeed(
      "finetune --data standin --threads 1 --image-size 64 --init small.safetensors --validation --epochs 1 --out "
      "valid.safetensors");
  const std::string line =
      " --data standin --calibrate standin --calibration-images 40 --target-images 10 "
      "--target-bits 4.5 -o packed.safetensors --json pack.json";
  EXPECT_THAT(succeed("pack valid.safetensors" + line).out, HasSubstr("verified on 10 other held-out training images"));
  EXPECT_EQ(json("pack.json").at("allocation").at("split"), "validation");
  EXPECT_EQ(model("packed.safetensors").metadata.at("calibration_data"), "stand-in, fitting");
  EXPECT_EQ(model("packed.safetensors").metadata.at("validation"),
            model("valid.safetensors").metadata.at("validation"));
  succeed("pack small.safetensors" + line);
  EXPECT_EQ(json("pack.json").at("allocation").at("split"), "train");
  EXPECT_EQ(model("packed.safetensors").metadata.at("calibration_data"), "stand-in, train");
}

TEST_F(Allocation, TheFileStaysWithinTheTarget) {
  allocate("--target-bits 4.5");
  const auto smaller = std::filesystem::file_size(at("packed.safetensors"));
  allocate("--target-file 0.035 --method linear");
  EXPECT_FALSE(json("pack.json").at("compressed"));
  EXPECT_LE(std::filesystem::file_size(at("packed.safetensors")), 35'000U);
  EXPECT_GT(std::filesystem::file_size(at("packed.safetensors")), smaller / 2);
}

TEST_F(Allocation, ACompressedFileStaysWithinTheTargetToo) {
  allocate("--target-file 0.03 --compress --method linear");
  EXPECT_LE(std::filesystem::file_size(at("packed.safetensors")), 30'000U);
  const nlohmann::json layer = json("pack.json").at("allocation").at("layers")[5];
  EXPECT_EQ(layer.at("weighed").size(), 7U);
  for (const auto& choice : layer.at("weighed")) EXPECT_LT(choice.at("file_bytes"), choice.at("stored_bytes"));
}

/// What small.safetensors takes in memory, as its ledger says.
int64_t resident_bytes(const nlohmann::json& report) { return report.at("size").at("resident").at("total"); }

TEST_F(Allocation, MemoryStaysWithinTheTarget) {
  int64_t smaller = 0;
  for (const int64_t target : {14'000, 22'000, 34'000}) {
    const nlohmann::json report = allocate(fmt::format("--target-resident {}", static_cast<double>(target) * 1e-6));
    EXPECT_FALSE(report.at("compressed"));
    EXPECT_LE(resident_bytes(report), target);
    EXPECT_GT(resident_bytes(report), smaller) << "more room is used";
    smaller = resident_bytes(report);
    for (const auto& layer : report.at("allocation").at("layers"))
      for (const auto& choice : layer.at("weighed")) EXPECT_EQ(choice.at("step"), 0) << "codes of a fixed rate alone";
  }
}

TEST_F(Allocation, TwoTargetsAreBothMet) {
  const auto pack = [&](const std::string& targets) {
    return allocate(targets + " --calibrate standin --calibration-images 40");
  };
  const nlohmann::json file = pack("--target-file 0.024");
  const int64_t resident = resident_bytes(file);
  const auto target = static_cast<int64_t>(0.85 * static_cast<double>(resident));
  const nlohmann::json both =
      pack(fmt::format("--target-file 0.024 --target-resident {}", static_cast<double>(target) * 1e-6));
  EXPECT_LE(std::filesystem::file_size(at("packed.safetensors")), 24'000U);
  EXPECT_LE(resident_bytes(both), target);
  EXPECT_GE(both.at("allocation").at("predicted_divergence"), file.at("allocation").at("predicted_divergence"));
}

/// A few large weights make rotating worthwhile; where it is not, inputs stay as they are.
TEST_F(Allocation, InputsAreRotatedWhereThatChangesPredictionsLess) {
  StateDict dict = testing::even_alexnet(1);
  dict.metadata["image_size"] = "64";
  for (const char* name : {"features.8.weight", "classifier.1.weight"}) {
    const auto weights = dict.at(name).values().view();  // uniform; their seventh power is not
    const float largest = *std::ranges::max_element(weights.span());
    for (float& weight : weights) weight *= 2.2F * std::pow(weight / largest, 6.0F);
  }
  save_state_dict(at("even.safetensors"), dict);
  const std::string line =
      "pack even.safetensors --data standin --target-images 40 --target-resident 0.15 -o packed.safetensors --json "
      "pack.json --force";
  EXPECT_THAT(succeed(line).out, HasSubstr("  rotated\n"));
  const nlohmann::json report = json("pack.json").at("allocation");
  ASSERT_EQ(report.at("rotations").size(), 7U) << "all but the first layer, which has three channels";
  const StateDict packed = model("packed.safetensors");
  for (const auto& rotation : report.at("rotations")) {
    const double plain = rotation.at("plain_divergence"), rotated = rotation.at("rotated_divergence");
    EXPECT_EQ(rotation.at("rotated"), rotated < plain);
    const std::string name = rotation.at("name");
    EXPECT_EQ(packed.at(name).packed_values().scheme.is_rotated(), rotated < plain) << name;
    if (name == "features.8.weight" || name == "classifier.1.weight") {
      EXPECT_LT(rotated, plain) << name;
    }
  }
  succeed("eval packed.safetensors --data standin --limit 10");
  succeed(line + " --rotate");  // all layers, unmeasured
  EXPECT_EQ(json("pack.json").at("allocation").at("rotations").size(), 0U);
  EXPECT_TRUE(model("packed.safetensors").at("classifier.4.weight").packed_values().scheme.is_rotated());
}

/// One way to store a layer, as the report says.
struct Weighed {
  double divergence;
  int64_t bytes;
};

/// The least sum of divergences of layers [layer, end) in what is left of the bytes; infinite if
/// none is below `bound`.
double least_divergence(const std::vector<std::vector<Weighed>>& layers, size_t layer, int64_t bytes,
                        double bound = INFINITY) {
  if (bytes < 0 || bound <= 0) return INFINITY;
  if (layer == layers.size()) return 0;
  double least = INFINITY;
  for (const Weighed& choice : layers[layer])
    least = std::min(least, choice.divergence + least_divergence(layers, layer + 1, bytes - choice.bytes,
                                                                 std::min(bound, least) - choice.divergence));
  return least;
}

TEST_F(Allocation, SchemesAreTheBestOfAllWithinTheCompressedFile) {
  nlohmann::json report = allocate("--target-file 0.026 --calibrate standin --calibration-images 40");
  EXPECT_LE(std::filesystem::file_size(at("packed.safetensors")), 26'000U);
  EXPECT_TRUE(report.at("compressed"));
  const StateDict packed = model("packed.safetensors");
  EXPECT_EQ(packed.metadata.at("rate_weight"), "1.4");
  nlohmann::json layers = report.at("allocation").at("layers");
  int64_t biases = 0;
  for (const Parameter& parameter : packed.parameters)
    biases += parameter.packed() ? 0 : 4 * parameter.shape().elements();
  double chosen = 0;
  std::vector<std::vector<Weighed>> all;
  for (auto& layer : layers) {
    EXPECT_EQ(to_string(packed.at(layer.at("name").get<std::string>()).packed_values().scheme),
              layer.at("scheme").get<std::string>());
    all.emplace_back();
    for (const auto& choice : layer.at("weighed")) {
      all.back().push_back({choice.at("divergence"), choice.at("file_bytes")});
      if (choice.at("step") == layer.at("step") && choice.at("scheme") == layer.at("scheme"))
        chosen += all.back().back().divergence;
    }
    // 16 steps and 7 widths; 8 rates of strings where a layer has channels for them.
    const auto channels = packed.at(layer.at("name").get<std::string>()).shape()[0];
    EXPECT_EQ(all.back().size(), channels < 64 ? 23U : 31U);
  }
  EXPECT_NEAR(chosen, least_divergence(all, 0, 26'000 - 10'000 - biases), 1e-12);
}

TEST_F(Allocation, IsMeasuredOnImagesThatRoundingDidNotSee) {
  const tools::AllocationOptions options{.images = 30};
  const auto pixels = [](const Dataset& images, size_t i) {
    const Dataset::Image& image = images.images[i];
    return std::span(images.pixels).subspan(image.offset, static_cast<size_t>(3 * image.width * image.height));
  };
  const Dataset seen = load_dataset(at("standin"), Split::train, 100);
  tools::DataSource standin(at("standin"), Unreadable::refuse);
  const Dataset behind = options.load_images(standin, StateDict{}, 100);
  EXPECT_EQ(behind.size(), 60);
  for (size_t i = 0; i < behind.images.size(); ++i)
    for (size_t j = 0; j < seen.images.size(); ++j)
      ASSERT_FALSE(std::ranges::equal(pixels(behind, i), pixels(seen, j)));
  EXPECT_EQ(options.load_images(standin, StateDict{}, 180).size(), 60) << "of 200 images: the last ones";
}

TEST_F(Allocation, MoreMayBeLostInFewerBits) {
  const double strict = allocate("--max-loss 0").at("size").at("bits_per_weight");
  const nlohmann::json loose = allocate("--max-loss 100");
  EXPECT_LE(loose.at("size").at("bits_per_weight"), strict);
  for (const auto& layer : loose.at("allocation").at("layers")) {
    int64_t smallest = INT64_MAX, chosen = 0;
    for (const auto& choice : layer.at("weighed")) {
      const int64_t bytes = choice.at("stored_bytes");
      smallest = std::min(smallest, bytes);
      if (choice.at("scheme") == layer.at("scheme")) chosen = bytes;
    }
    EXPECT_EQ(chosen, smallest) << layer.at("name") << ": anything goes";
  }
}

TEST_F(Allocation, ChoosesAmongTheWidthsOfAGivenMethod) {
  const nlohmann::json report = allocate("--target-bits 5 --method dynamic-tree --granularity channel");
  for (const auto& layer : report.at("allocation").at("layers"))
    EXPECT_THAT(std::string(layer.at("scheme")), HasSubstr("dynamic-tree:"));
}

/// Polls until `path` is there; false when the program ended without it.
bool wait_for_file(testing::Child& child, const std::filesystem::path& path) {
  while (!std::filesystem::exists(path)) {
    if (!child.running()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

TEST_F(Allocation, AStoppedRunGoesOnWhereItWas) {
  const std::string line =
      "pack small.safetensors --data standin --target-images 40 --target-file 0.026 --threads 2 -o packed.safetensors";
  succeed(line + " --json unstopped.json");
  const std::string unstopped = testing::read_text(at("packed.safetensors"));
  const std::filesystem::path measurements = at("packed.safetensors.measurements.json");
  EXPECT_FALSE(std::filesystem::exists(measurements)) << "nobody needs them when the model is written";
  for (const int signal : {SIGINT, SIGKILL}) {
    std::filesystem::remove(at("packed.safetensors"));
    testing::Child child(command(line), at(""), environment_, at(".run").string());
    ASSERT_TRUE(wait_for_file(child, measurements));
    child.send(signal);
    const testing::Outcome stopped = child.wait();
    ASSERT_FALSE(std::filesystem::exists(at("packed.safetensors"))) << stopped;
    if (signal == SIGINT) {
      EXPECT_EQ(stopped.code, 130) << stopped;
      EXPECT_THAT(stopped.err, HasSubstr("packed.safetensors.measurements.json, and the same command goes on"));
    }
    EXPECT_THAT(succeed(line + " --json resumed.json").out, HasSubstr(" choices are in "));
    EXPECT_EQ(testing::read_text(at("packed.safetensors")), unstopped);
    EXPECT_EQ(json("resumed.json").at("allocation"), json("unstopped.json").at("allocation"));
    EXPECT_FALSE(std::filesystem::exists(measurements));
  }
}

TEST_F(Allocation, MeasurementsServeOtherTargets) {
  const std::string line = "--threads 2 --measurements kept.json --target-resident ";
  allocate(line + "0.05");
  const nlohmann::json kept = json("kept.json");
  const nlohmann::json again = allocate(line + "0.03");
  EXPECT_TRUE(json("kept.json") == kept) << "nothing was measured again";
  EXPECT_EQ(again.at("allocation"), allocate("--threads 2 --target-resident 0.03").at("allocation"));
  // A compressed file needs the sizes of its codes, too.
  const nlohmann::json file = allocate("--threads 2 --measurements kept.json --target-file 0.026");
  EXPECT_EQ(file.at("allocation"), allocate("--threads 2 --target-file 0.026").at("allocation"));
  EXPECT_GT(json("kept.json").at("choices").size(), kept.at("choices").size());
}

TEST_F(Allocation, MeasurementsOfSomethingElseAreRefused) {
  const std::string line =
      "pack small.safetensors --data standin --measurements kept.json --target-resident 0.02 -o packed.safetensors ";
  const std::string command = line + "--target-images 40 --threads 2";
  succeed(command);
  const std::string kept = testing::read_text(at("kept.json"));
  refuse(line + "--target-images 30 --threads 2", "differs in its images", 2);
  refuse(line + "--target-images 40 --threads 1", "differs in its device", 2);
  refuse(command + " --calibrate standin --calibration-images 40", "differs in its calibration", 2);
  EXPECT_EQ(testing::read_text(at("kept.json")), kept);
  const auto damaged = [&](const std::string& text) {
    testing::write_text(at("kept.json"), text);
    refuse(command, "kept.json holds no measurements", 1);
    EXPECT_EQ(testing::read_text(at("kept.json")), text);
  };
  damaged("");
  damaged("[]");
  damaged("{}");
  damaged(kept.substr(0, kept.size() / 2));
  damaged(std::regex_replace(kept, std::regex("\"divergence\": [^,]*,"), "\"divergence\": -1,"));
  damaged(std::regex_replace(kept, std::regex("\"stored_bytes\": [0-9]*"), "\"stored_bytes\": \"many\""));
  damaged(std::regex_replace(kept, std::regex("trellis:2"), "trellis:77"));
  refuse("pack small.safetensors --bits 4 --measurements kept.json", "give one", 2);
  refuse(
      "pack small.safetensors --data standin --target-resident 0.02 --target-images 40 --measurements kept.json -o "
      "kept.json --force",
      "one file", 2);
}

TEST_F(Allocation, RefusesWhatCannotBeMet) {
  refuse("pack small.safetensors --data standin --target-images 40 --target-bits 1.5", "cannot be met", 2);
  refuse("pack small.safetensors --data standin --target-images 40 --target-file 0.001", "cannot be met", 2);
  refuse("pack small.safetensors --data standin --target-images 40 --target-resident 0.001", "cannot be met", 2);
  refuse("pack small.safetensors --data standin --target-images 40 --target-resident 0.001 --target-file 1",
         "cannot be met", 2);
  refuse("pack small.safetensors --data standin --target-bits 4 --target-resident 3", "excludes", 2);
  refuse("pack small.safetensors --data standin --target-file 1 --target-size 3", "old name", 2);
  refuse("pack small.safetensors --data standin --target-bits 4 --bits 3", "leave --bits", 2);
  refuse("pack small.safetensors --data standin --target-file 0.026 --target-bits 3", "excludes", 2);
  refuse("pack small.safetensors --data standin --target-file 0.026 --layer features.0=linear:8", "leave --bits", 2);
  refuse("pack small.safetensors --data standin --target-images 3 --target-bits 4", "limit", 2);
}

TEST_F(Allocation, TheSameChoiceEveryTime) {
  const nlohmann::json once = allocate("--target-bits 3 --threads 2");
  EXPECT_EQ(allocate("--target-bits 3 --threads 2").at("allocation"), once.at("allocation"));
}

}  // namespace
}  // namespace nibblenet
