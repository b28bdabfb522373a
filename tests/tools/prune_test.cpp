#include <fmt/format.h>

#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

class PruneTest : public ToolsTest {};

TEST_F(PruneTest, MakesANarrowerModelThatEveryToolTakes) {
  const std::string channels = "--channels classifier.1=30 --channels classifier.4=20 --channels features.10=7 ";
  succeed("prune small.safetensors --calibrate standin --calibration-images 50 --save-calibration c.safetensors " +
          channels + "-o narrow.safetensors --json out.json");
  const StateDict narrow = model("narrow.safetensors");
  EXPECT_EQ(narrow.at("features.10.weight").shape()[0], 7);
  EXPECT_EQ(narrow.at("classifier.1.weight").shape(), (Shape{30, 7 * 36}));
  EXPECT_EQ(narrow.at("classifier.4.bias").shape(), (Shape{20}));
  EXPECT_EQ(narrow.metadata.at("image_size"), "64");
  EXPECT_EQ(narrow.metadata.at("units"), "classifier.4: 20 of 35, classifier.1: 30 of 67, features.10: 7 of 10");
  EXPECT_TRUE(narrow.metadata.at("units_calibration").starts_with("50 images of "));

  const nlohmann::json report = json("out.json");
  EXPECT_LT(report.at("weights").get<int64_t>(), report.at("weights_before").get<int64_t>());
  for (const nlohmann::json& layer : report.at("layers")) {
    EXPECT_GT(layer.at("error").get<double>(), 0) << layer;
    EXPECT_LT(layer.at("error").get<double>(), 1) << layer;
  }

  succeed("prune small.safetensors --calibration c.safetensors " + channels + "-o again.safetensors");
  EXPECT_EQ(read_text(at("narrow.safetensors")), read_text(at("again.safetensors")));
  succeed("pack narrow.safetensors --bits 4 --calibrate standin --calibration-images 50 -o packed.safetensors");
  succeed("eval packed.safetensors --data standin --limit 20");
  succeed("finetune --init narrow.safetensors --data standin --epochs 1 --train-limit 40 --out tuned.safetensors");
  EXPECT_EQ(model("tuned.safetensors").at("classifier.1.weight").shape(), (Shape{30, 7 * 36}));
  // Prunes the narrow model once more.
  succeed("prune narrow.safetensors --calibrate standin --channels classifier.1=10 -o narrower.safetensors");
  EXPECT_TRUE(model("narrower.safetensors").metadata.at("units").ends_with("; classifier.1: 10 of 30"));
}

TEST_F(PruneTest, RefusesWhatItCannotDo) {
  const std::string line = "prune small.safetensors --calibrate standin -o out.safetensors ";
  const std::vector<std::pair<std::string, std::string>> flags = {
      {"", "--channels"},
      {"--channels classifier.1", "LAYER=COUNT"},
      {"--channels classifier.1=many", "LAYER=COUNT"},
      {"--channels classifier.1=0", "LAYER=COUNT"},
      {"--channels =3", "LAYER=COUNT"},
      {"--channels classifier.1=68", "67 channels"},
      {"--channels classifier.6=5", "classes"},
      {"--channels classifier.2=5", "features.0"},
      {"--channels features.0=3 --channels features.0=4", "twice"}};
  for (const auto& [wrong, mention] : flags) refuse(line + wrong, mention, 2);
  refuse("prune small.safetensors --channels classifier.1=5 -o out.safetensors", "--calibrate", 2);
  succeed("pack small.safetensors --bits 4 -o packed.safetensors");
  refuse("prune packed.safetensors --calibrate standin --channels classifier.1=5 -o out.safetensors", "float model", 2);
  EXPECT_FALSE(std::filesystem::exists(at("out.safetensors")));
}

}  // namespace
}  // namespace nibblenet::testing
