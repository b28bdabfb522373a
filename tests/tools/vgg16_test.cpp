#include "tests/engine/io/io_helpers.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

/// VGG-16 through the same programs:
///   vgg.safetensors   of 10,000 weights, for images of 32 x 32
///   bn.pth            a state dict with batch norms, as PyTorch wrote it
class Vgg16Tools : public ToolsTest {
 protected:
  void SetUp() override {
    ToolsTest::SetUp();
    StateDict dict = small_vgg16(1);
    dict.metadata[image_size_key] = "32";
    save_state_dict(at("vgg.safetensors"), dict);
    fs::copy(golden_folder() / "pth/vgg16_bn_small.pth", at("bn.pth"));
  }

  std::vector<std::string> names_in(const std::string& file) const {
    std::vector<std::string> names;
    for (const Parameter& parameter : model(file).parameters) names.push_back(parameter.name);
    return names;
  }
  static std::vector<std::string> vgg16_names() {
    std::vector<std::string> names;
    for (const std::string& layer : layer_names(vgg16))
      for (const char* part : {".weight", ".bias"}) names.push_back(layer + part);
    return names;
  }
  static inline const std::string data = " --data standin --threads 1 ";
};

TEST_F(Vgg16Tools, BatchNormsAreFoldedBeforeAnythingElse) {
  const Outcome evaluated = succeed("eval bn.pth --image-size 32 --json bn.json" + data);
  EXPECT_NE(evaluated.out.find("folded 13 batch norms"), std::string::npos) << evaluated;
  succeed("export bn.pth -o vgg16.safetensors");
  EXPECT_EQ(names_in("vgg16.safetensors"), vgg16_names());
  succeed("eval vgg16.safetensors --image-size 32 --json vgg16.json" + data);
  EXPECT_EQ(json("bn.json").at("loss"), json("vgg16.json").at("loss"));
  EXPECT_EQ(json("bn.json").at("accuracy"), json("vgg16.json").at("accuracy"));

  for (const char* line : {"pack bn.pth --bits 4 -o a.safetensors", "pack vgg16.safetensors --bits 4 -o b.safetensors"})
    succeed(line);
  EXPECT_EQ(names_in("a.safetensors"), vgg16_names());
  const StateDict a = model("a.safetensors"), b = model("b.safetensors");
  for (const std::string& layer : layer_names(vgg16)) {
    const PackedTensor &x = a.at(layer + ".weight").packed_values(), &y = b.at(layer + ".weight").packed_values();
    EXPECT_EQ(to_string(x.scheme), "nf4:4:channel") << layer;
    EXPECT_TRUE(x.codes == y.codes && x.scales == y.scales) << layer;
  }
}

TEST_F(Vgg16Tools, TorchvisionsLayersTakeTheExport) {
  succeed("export bn.pth --to pth -o vgg16.pth");
  const auto python = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"/usr/bin/env", "python3"});
    return Child(words, at(""), {}, at(".python").string()).wait();
  };
  if (python({"-c", "import torchvision"}).code != 0) GTEST_SKIP() << "python3 with torchvision is not here";
  const Outcome outcome =
      python({NIBBLENET_SOURCE "/tests/peers/vgg16_golden.py", golden_folder().string(), at("vgg16.pth").string()});
  EXPECT_EQ(outcome.code, 0) << outcome;
}

TEST_F(Vgg16Tools, EveryToolTakesIt) {
  succeed("finetune --init vgg.safetensors --freeze none --epochs 2 --batch 50 --out tuned.safetensors --json t.json" +
          data);
  const auto epochs = json("t.json").at("epochs");
  EXPECT_LT(epochs.at(1).at("loss").get<double>(), epochs.at(0).at("loss").get<double>());
  EXPECT_EQ(model("tuned.safetensors").metadata.at("image_size"), "32");
  succeed("finetune --init vgg.safetensors --epochs 1 --train-limit 10 --test-limit 10" + data);  // features frozen
  int named = 0;
  for (const auto& entry : fs::directory_iterator(at("weights")))
    named += entry.path().filename().string().ends_with("_final_frozen_vgg16.safetensors") ? 1 : 0;
  EXPECT_EQ(named, 1);

  succeed("finetune --init vgg.safetensors --quantize kmeans:3:channel --epochs 1 --out qat.safetensors" + data);
  succeed(
      "pack tuned.safetensors --bits 3 --calibrate standin --calibration-images 20 --compress -o packed.safetensors");
  succeed("eval packed.safetensors --compare tuned.safetensors" + data);
  const Outcome inspected = succeed("inspect packed.safetensors");
  EXPECT_NE(inspected.out.find("features.28.weight"), std::string::npos);
  succeed("bench packed.safetensors --task T32 --batch 1 --seconds 0.01 --threads 1 --json bench.json");
  write_bytes(at("grey.png"), plain_png(50, 40, {90, 90, 90}));
  EXPECT_NE(succeed("classify grey.png --model packed.safetensors").out.find("50 x 40"), std::string::npos);
  succeed(
      "prune tuned.safetensors --channels features.0=3 --channels classifier.0=9 --calibrate standin "
      "--calibration-images 20 -o narrow.safetensors");
  EXPECT_EQ(model("narrow.safetensors").at("features.2.weight").shape(), (Shape{7, 3, 3, 3}));
}

TEST_F(Vgg16Tools, SweepsByItsOwnRecipes) {
  succeed("sweep vgg.safetensors --preset frontier --calibrate standin --calibration-images 20 --limit 10 --out out" +
          data);
  const std::string rows = read_text(at("out/results.jsonl"));
  EXPECT_NE(rows.find("--layer classifier.[03]=kmeans:2"), std::string::npos);
  EXPECT_EQ(std::ranges::count(rows, '\n'), 21) << "the float model and 20 recipes";
}

TEST_F(Vgg16Tools, WhatItDoesNotTakeIsSaid) {
  refuse("eval vgg.safetensors --image-size 31" + data, "32…4096", 2);
  refuse("finetune --network resnet" + data, "--network", 2);
  refuse("finetune --network alexnet --init vgg.safetensors" + data, "--network alexnet", 2);
  refuse("finetune --network vgg16 --init small.safetensors" + data, "--network vgg16", 2);
  refuse("finetune --network vgg16 --resume vgg.safetensors" + data, "--network", 2);
  refuse("pack vgg.safetensors --layer classifier.1=linear:8:channel", "classifier.0, classifier.3, classifier.6", 2);
  fs::create_directories(at("weights"));
  write_text(at("weights/manifest.json"),
             R"([{"name": "imagenet", "url": "file:///nowhere/x.pth", "bytes": 1, "sha256_prefix": "00"}])");
  refuse("finetune --network vgg16 --init imagenet" + data, "no such weights of vgg16", 2);
  fs::resize_file(at("bn.pth"), fs::file_size(at("bn.pth")) - 100);
  refuse("pack bn.pth", "bn.pth", 1);
}

}  // namespace
}  // namespace nibblenet::testing
