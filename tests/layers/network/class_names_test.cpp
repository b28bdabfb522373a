#include "layers/network/class_names.h"

#include <gmock/gmock.h>

#include "tests/support/small_network.h"

namespace nibblenet::testing {
namespace {

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

TEST(ClassNames, TwoFoldersOfOneClassAreRefused) {
  EXPECT_THAT(refusal(data_of({"Cat", "cat", "dog"}), model_of({"cat", "dog", "frog"})),
              HasSubstr("more than one folder for 'cat'; classes of the model"));
  EXPECT_THAT(refusal(data_of({"automobile", "car", "dog"}), model_of({"automobile", "dog"})),
              HasSubstr("more than one folder for 'automobile'"));
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

}  // namespace
}  // namespace nibblenet::testing
