#include "tools/common/class_names.h"

#include <gmock/gmock.h>

#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

using namespace nibblenet::tools;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Names = std::vector<std::string>;

StateDict model_of(const Names& classes) {
  StateDict model = small_alexnet(1, static_cast<int64_t>(classes.size()));
  model.metadata[class_names_key] = class_names_text(classes);
  return model;
}

/// One image of each class.
Dataset data_of(const Names& classes, const std::string& description = "image folder") {
  Dataset data;
  data.description = description;
  data.classes = classes;
  for (size_t label = 0; label < classes.size(); ++label) data.labels.push_back(static_cast<uint8_t>(label));
  return data;
}

std::string refusal(Dataset data, const StateDict& model, bool asked_for = true) {
  try {
    match_classes(data, model, asked_for);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(ClassNames, EqualListsNeedNoWord) {
  Dataset data = data_of({"cat", "dog", "frog"});
  EXPECT_EQ(match_classes(data, model_of({"cat", "dog", "frog"})), "");
  EXPECT_THAT(data.labels, ElementsAre(0, 1, 2));
}

TEST(ClassNames, LabelsFollowTheModelWhateverTheOrder) {
  Dataset data = data_of({"cat", "dog", "frog"});
  EXPECT_THAT(match_classes(data, model_of({"frog", "cat", "dog"})), HasSubstr("order"));
  EXPECT_THAT(data.labels, ElementsAre(1, 2, 0));
  EXPECT_THAT(data.classes, ElementsAre("frog", "cat", "dog"));
}

TEST(ClassNames, CaseSpacesAndSynonymsNameTheSameClass) {
  const Names model = {"airplane", "automobile", "light green", "dog"};
  for (const Names& names : std::vector<Names>{{"Airplane", "AUTOMOBILE", "Light_Green", "Dog"},
                                               {"plane", "car", "lightgreen", "dog"},
                                               {"aero plane", "Car", "light-green", "DOG"}}) {
    Dataset data = data_of(names);
    const std::string line = match_classes(data, model_of(model));
    EXPECT_THAT(line, HasSubstr("is 'airplane'"));
    EXPECT_THAT(data.labels, ElementsAre(0, 1, 2, 3));
    EXPECT_EQ(data.classes, model);
    EXPECT_TRUE(same_classes(names, model));
  }
}

TEST(ClassNames, AnExactNameIsPreferredToASynonym) {
  Dataset data = data_of({"automobile", "car"});
  EXPECT_EQ(match_classes(data, model_of({"car", "automobile"})),
            "labels follow the model's list, which is not in "
            "the data's order");
  EXPECT_THAT(data.labels, ElementsAre(1, 0));
}

TEST(ClassNames, AMissingClassMovesTheOthersToTheirPlaces) {
  Dataset data = data_of({"cat", "zebra"});
  EXPECT_THAT(match_classes(data, model_of({"ant", "cat", "dog", "zebra"})), HasSubstr("no images of 'ant', 'dog'"));
  EXPECT_THAT(data.labels, ElementsAre(1, 3));
}

TEST(ClassNames, ClassesWithoutImagesDoNotCount) {
  Dataset data = data_of({"cat", "dog", "frog", "unknown"});
  data.labels.pop_back();
  EXPECT_EQ(match_classes(data, model_of({"cat", "dog", "frog"})), "");
  EXPECT_THAT(data.labels, ElementsAre(0, 1, 2));
}

TEST(ClassNames, NamesThatDoNotFitAreRefusedWithBothLists) {
  for (const Names& names :
       std::vector<Names>{{"cat", "wolf", "frog"}, {"cat", "dog", "frog", "toad"}, {"car", "Automobile"}}) {
    const std::string message = refusal(data_of(names), model_of({"automobile", "cat", "dog", "frog"}));
    EXPECT_THAT(message, HasSubstr("'automobile', 'cat', 'dog', 'frog'"));
    EXPECT_THAT(message, HasSubstr("'" + names.back() + "'"));
  }
}

TEST(ClassNames, AModelWithoutNamesTakesPositionsOfAsManyClasses) {
  const StateDict unnamed = small_alexnet(1, 10);
  Dataset other = data_of({"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"});
  EXPECT_THAT(match_classes(other, unnamed), HasSubstr("by position"));
  EXPECT_THAT(other.labels, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
  Dataset some = data_of({"car", "truck"});  // CIFAR-10's, which ten classes without names are taken for
  match_classes(some, unnamed);
  EXPECT_THAT(some.labels, ElementsAre(1, 9));
  EXPECT_THAT(refusal(data_of({"red", "blue"}), unnamed), HasSubstr("the data has 2: 'red', 'blue'"));
}

TEST(ClassNames, AModelWithoutNamesIsRefusedOnImagesThatAreNearlyCifars) {
  const StateDict unnamed = small_alexnet(1, 10);
  const std::string message =
      refusal(data_of({"bird", "cat", "deer", "dog", "frog", "horse", "plane1", "ship", "truck", "vehicle"}), unnamed);
  EXPECT_THAT(message, HasSubstr("'plane1', 'vehicle'"));
  EXPECT_THAT(message, HasSubstr("CIFAR-10's, since it names none"));
  // Ten animals of somebody's own: some of their names are CIFAR-10's, too.
  Dataset animals = data_of({"ant", "bee", "bird", "cat", "cow", "deer", "dog", "elk", "fox", "gnu"});
  EXPECT_THAT(match_classes(animals, unnamed), HasSubstr("by position"));
}

TEST(ClassNames, TheStandInIsForThoseWhoAskForIt) {
  const Names names(standin_classes().begin(), standin_classes().end());
  const StateDict model = model_of(Names(cifar10_classes().begin(), cifar10_classes().end()));
  EXPECT_THAT(refusal(data_of(names, "stand-in"), model, false), HasSubstr("--data PATH"));
  Dataset data = data_of(names, "stand-in");
  EXPECT_THAT(match_classes(data, model, true), HasSubstr("accuracy means nothing"));
  EXPECT_EQ(match_classes(data, model_of(names), false), "");
}

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
