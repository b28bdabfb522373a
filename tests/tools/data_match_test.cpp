#include <gmock/gmock.h>

#include "layers/network/class_names.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

using ::testing::HasSubstr;

using Names = std::vector<std::string>;

/// Tools on models and images that name their classes.
class DataMatchTest : public ToolsTest {
 protected:
  void SetUp() override {
    ToolsTest::SetUp();
    StateDict dict = model("small.safetensors");
    const Names names(standin_classes().begin(), standin_classes().end());
    dict.metadata[class_names_key] = class_names_text(names);
    save_state_dict(at("named.safetensors"), dict);
  }
  /// The stand-in's images under other names, which is another data set.
  void name_images(const std::string& folder, const Names& names) const {
    std::filesystem::copy(at("standin"), at(folder), std::filesystem::copy_options::recursive);
    std::string text;
    for (const std::string& name : names) text += name + "\n";
    write_text(at(folder + "/batches.meta.txt"), text);
  }
};

TEST_F(DataMatchTest, AModelOfAnotherOrderIsAsRight) {
  StateDict turned = model("named.safetensors");
  Names names = nlohmann::json::parse(turned.metadata[class_names_key]).get<Names>();
  std::ranges::rotate(names, names.begin() + 3);
  turned.metadata[class_names_key] = class_names_text(names);
  for (const char* name : {"classifier.6.weight", "classifier.6.bias"}) {
    const auto values = turned.at(name).values().view().span();
    std::ranges::rotate(values, values.begin() + static_cast<ptrdiff_t>(values.size() / 10 * 3));
  }
  save_state_dict(at("turned.safetensors"), turned);
  succeed("eval named.safetensors --data standin --json named.json --compare turned.safetensors");
  EXPECT_EQ(json("named.json").at("data_set").at("match"), nullptr);
  EXPECT_EQ(json("named.json").at("compared_with").at("only_other"), 0);
  EXPECT_EQ(json("named.json").at("compared_with").at("only_this"), 0);
  const Outcome outcome = succeed("eval turned.safetensors --data standin --json turned.json");
  EXPECT_THAT(outcome.out, HasSubstr("classes: labels follow"));
  EXPECT_EQ(json("named.json").at("correct"), json("turned.json").at("correct"));
  EXPECT_EQ(json("turned.json").at("data_set").at("classes"), nlohmann::json(names));
  EXPECT_TRUE(json("turned.json").at("data_set").at("match").is_string());
}

TEST_F(DataMatchTest, EveryToolRefusesImagesOfUnknownClasses) {
  name_images("others", {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"});
  for (const char* line :
       {"eval named.safetensors --data others", "sweep named.safetensors --data others --out swept",
        "bench named.safetensors --compare --sides float32 --batch 1 --seconds 0 --data others",
        "finetune --init named.safetensors --data others --reset none", "pack named.safetensors --calibrate others",
        "pack named.safetensors --target-bits 4 --data others",
        "prune named.safetensors --channels classifier.1=5 --calibrate others -o out.safetensors"})
    refuse(line, "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j'", 2);
}

TEST_F(DataMatchTest, FineTuningKeepsAHeadOfTheSameClassesInItsOrder) {
  Names names(standin_classes().begin(), standin_classes().end());
  std::ranges::reverse(names);
  name_images("reversed", names);
  const std::string finetune = "finetune --init named.safetensors --epochs 1 --train-limit 20 --test-limit 20 ";
  EXPECT_THAT(succeed(finetune + "--data reversed --out kept.safetensors --json kept.json").out,
              HasSubstr("classes: labels follow"));
  EXPECT_EQ(model("kept.safetensors").metadata.at(class_names_key),
            model("named.safetensors").metadata.at(class_names_key));
  name_images("others", {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"});
  EXPECT_THAT(succeed(finetune + "--data others --out reset.safetensors").out, HasSubstr("re-initialising the tail"));
  EXPECT_THAT(model("reset.safetensors").metadata.at(class_names_key), HasSubstr("\"a\",\"b\""));
  refuse("finetune --init random --image-size 64 --data others --distill named.safetensors", "--distill", 2);
}

/// The last line that a tool prints, and its JSON, say what its images are.
TEST_F(DataMatchTest, ResultsOfTheStandInSaySo) {
  name_images("real", {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"});
  const auto last_line = [](const std::string& text) {
    const size_t end = text.find_last_not_of('\n');
    const size_t begin = text.find_last_of('\n', end);
    return text.substr(begin == text.npos ? 0 : begin + 1, end - begin);
  };
  for (const char* line :
       {"eval small.safetensors --data DATA",
        "sweep small.safetensors --data DATA --schemes linear:8:row --out swept-DATA",
        "bench small.safetensors --compare --sides float32 --batch 1 --seconds 0 --rounds 1 --data DATA",
        "finetune --init small.safetensors --data DATA --epochs 1 --train-limit 20 --test-limit 20 --out "
        "DATA.safetensors",
        "pack small.safetensors --calibrate DATA --calibration-images 20 -o DATA.packed.safetensors",
        "prune small.safetensors --channels classifier.1=60 --calibrate DATA --calibration-images 20 -o "
        "DATA.narrow.safetensors"}) {
    for (const std::string data : {"standin", "real"}) {
      std::string command = line;
      for (size_t at = command.find("DATA"); at != command.npos; at = command.find("DATA"))
        command.replace(at, 4, data);
      const Outcome outcome = succeed(command + " --json out.json");
      EXPECT_EQ(last_line(outcome.out).starts_with("made on the stand-in"), data == "standin") << outcome;
      EXPECT_EQ(json("out.json").at("data_set").at("stand_in"), data == "standin");
    }
  }
}

TEST_F(DataMatchTest, AModelOfRealClassesIsRefusedOnAFoundStandIn) {
  StateDict dict = model("small.safetensors");
  dict.metadata[class_names_key] = class_names_text(Names(cifar10_classes().begin(), cifar10_classes().end()));
  save_state_dict(at("cifar.safetensors"), dict);
  std::filesystem::copy(at("standin"), at("data"), std::filesystem::copy_options::recursive);
  for (const char* line : {"eval cifar.safetensors", "sweep cifar.safetensors", "finetune --init cifar.safetensors",
                           "pack cifar.safetensors --target-bits 4"})
    refuse(line, "--data PATH", 2);
  EXPECT_THAT(succeed("eval cifar.safetensors --data data").out, HasSubstr("accuracy means nothing"));
}

}  // namespace
}  // namespace nibblenet::testing
