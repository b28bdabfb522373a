#include "engine/io/holdout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <set>
#include <utility>

#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using namespace testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// An image's bytes.
Bytes picture(const Dataset& dataset, size_t image) {
  const auto first = dataset.pixels.begin() + static_cast<std::ptrdiff_t>(dataset.images.at(image).offset);
  return {first, first + 3 * dataset.images[image].width * dataset.images[image].height};
}

std::multiset<Bytes> pictures(const Dataset& dataset) {
  std::multiset<Bytes> all;
  for (size_t i = 0; i < dataset.images.size(); ++i) all.insert(picture(dataset, i));
  return all;
}

/// A data set of grey images, `sizes` images of each class in turn.
Dataset grey_images(const std::vector<int>& sizes) {
  Dataset dataset{.description = "grey", .classes = {}};
  int grey = 0;
  for (size_t label = 0; label < sizes.size(); ++label) {
    dataset.classes.push_back(fmt::format("class {}", label));
    for (int i = 0; i < sizes[label]; ++i, ++grey) {
      dataset.images.push_back({2, 1, dataset.pixels.size()});
      dataset.labels.push_back(static_cast<uint8_t>(label));
      dataset.pixels.insert(dataset.pixels.end(), 6, static_cast<uint8_t>(grey));
    }
  }
  return dataset;
}

/// The stand-in of seed 1 with 300 training images.
class HoldoutTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TemporaryFolder>();
    write_standin(folder_->path(), 300, 10, 1);
    train_ = load_dataset(folder_->path(), Split::train);
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static inline std::unique_ptr<TemporaryFolder> folder_;
  static inline Dataset train_;
};

/// Models depend on this list: it never changes.
TEST_F(HoldoutTest, TheListIsFixed) {
  EXPECT_THAT(held_out(train_), ElementsAre(18, 30, 38, 42, 68, 76, 84, 87, 89, 97, 119, 124, 132, 142, 145, 159, 172,
                                            173, 176, 185, 187, 189, 215, 224, 246, 248, 264, 282, 285, 292));
  EXPECT_THAT(held_out(grey_images({10, 30, 1, 2, 0, 9})), ElementsAre(2, 11, 13, 33, 42, 46));
}

TEST_F(HoldoutTest, OrderAndNumberingOfTheFilesDoNotMatter) {
  const std::multiset<Bytes> held = pictures(part_of(train_, Split::validation));
  std::vector<size_t> backwards(train_.images.size());
  std::iota(backwards.rbegin(), backwards.rend(), size_t{0});
  EXPECT_EQ(pictures(part_of(images_at(train_, backwards), Split::validation)), held);
  Dataset renumbered = images_at(train_, backwards);
  for (uint8_t& label : renumbered.labels) label = static_cast<uint8_t>(9 - label);
  EXPECT_EQ(pictures(part_of(renumbered, Split::validation)), held);
}

TEST_F(HoldoutTest, EveryTrainingImageIsInOnePart) {
  const Dataset validation = load_dataset(folder_->path(), Split::validation);
  const Dataset fitting = load_dataset(folder_->path(), Split::fitting);
  EXPECT_EQ(validation.size(), 30);
  EXPECT_EQ(fitting.size(), 270);
  for (size_t label = 0; label < 10; ++label)
    EXPECT_EQ(std::ranges::count(validation.labels, label), std::ranges::count(train_.labels, label) / 10);
  const std::multiset<Bytes> held = pictures(validation);
  std::multiset<Bytes> both = held;
  for (const Bytes& each : pictures(fitting)) {
    EXPECT_FALSE(held.contains(each));
    both.insert(each);
  }
  EXPECT_EQ(both, pictures(train_));
  EXPECT_EQ(validation.pixels.size(), 30 * 3072U) << "the other part's pixels are not kept";
  EXPECT_EQ(fitting.pixels.size(), 270 * 3072U);
  EXPECT_EQ(validation.classes, train_.classes);
  EXPECT_EQ(validation.description, train_.description);
  EXPECT_TRUE(std::ranges::is_sorted(held_out(train_)));
}

TEST_F(HoldoutTest, ALimitKeepsTheFirstOfThePartAndChangesNoPart) {
  const Dataset all = load_dataset(folder_->path(), Split::validation);
  const Dataset first = load_dataset(folder_->path(), Split::validation, 10);
  EXPECT_EQ(first.size(), 10);
  EXPECT_TRUE(std::ranges::includes(pictures(all), pictures(first)));
  EXPECT_EQ(load_dataset(folder_->path(), Split::fitting, 100).size(), 100);
  EXPECT_THROW(load_dataset(folder_->path(), Split::validation, 9), UsageError);
  EXPECT_THROW(load_dataset(folder_->path(), Split::fitting, -1), UsageError);
}

TEST_F(HoldoutTest, SmallClassesGiveOneImage) {
  const Dataset validation = part_of(grey_images({1, 2, 9, 10, 19, 20, 0}), Split::validation);
  EXPECT_THAT(validation.labels, ElementsAre(1, 2, 3, 4, 5, 5));
  EXPECT_THAT(held_out(grey_images({1, 1, 0})), IsEmpty());
  EXPECT_THAT(held_out(Dataset{}), IsEmpty());
  EXPECT_THAT(message_of<UsageError>([] {
                part_of(grey_images({1, 1}), Split::validation);
              }),
              HasSubstr("two or more"));
}

TEST_F(HoldoutTest, EqualPicturesGoByTheirPosition) {
  Dataset equal = grey_images({20});
  std::ranges::fill(equal.pixels, uint8_t{7});
  EXPECT_THAT(held_out(equal), ElementsAre(0, 1));
}

TEST_F(HoldoutTest, TheShapeCountsBesideTheBytes) {
  Dataset wide = grey_images({60});
  Dataset high = grey_images({60});
  for (Dataset::Image& image : high.images) std::swap(image.width, image.height);
  EXPECT_NE(held_out(wide), held_out(high));
}

TEST_F(HoldoutTest, OtherSplitsAreNoPart) {
  EXPECT_THROW(part_of(train_, Split::train), UsageError);
  EXPECT_THROW(part_of(train_, Split::test), UsageError);
}

TEST(SplitNames, ReadBack) {
  for (const Split split : {Split::train, Split::validation, Split::fitting, Split::test})
    EXPECT_EQ(parse_split(to_string(split)), split);
  EXPECT_THAT(message_of<UsageError>([] { parse_split("valid"); }), HasSubstr("validation or fitting"));
}

}  // namespace
}  // namespace nibblenet
