#include "engine/io/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "engine/core/random.h"

namespace nibblenet {
namespace {

using ::testing::ElementsAre;

constexpr int side = 6;
constexpr Preprocess small = {5, 4, {0.5F, 0.5F, 0.5F}, {0.5F, 0.5F, 0.5F}};

/// Random images; image i has label i % 7.
Dataset make_dataset(int64_t size) {
  Dataset dataset;
  Random random(1);
  for (int64_t i = 0; i < size; ++i) {
    dataset.images.push_back({side, side, dataset.pixels.size()});
    dataset.labels.push_back(static_cast<uint8_t>(i % 7));
    for (int p = 0; p < side * side * 3; ++p) dataset.pixels.push_back(static_cast<uint8_t>(random.bits()));
  }
  return dataset;
}

struct Copy {
  std::vector<float> images;
  std::vector<int32_t> labels;
  std::vector<int64_t> indices;
  friend bool operator==(const Copy&, const Copy&) = default;
};

std::vector<Copy> all_batches(const Dataset& dataset, const LoaderOptions& options, bool slowly = false) {
  Loader loader(dataset, small, options);
  std::vector<Copy> copies;
  Batch batch;
  while (loader.next(batch)) {
    // With time to prepare the next batch, this one must still be the same.
    if (slowly) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    copies.push_back({{batch.images.begin(), batch.images.end()},
                      {batch.labels.begin(), batch.labels.end()},
                      {batch.indices.begin(), batch.indices.end()}});
  }
  EXPECT_FALSE(loader.next(batch));
  return copies;
}

TEST(Loader, GivesEveryImageOnceInOrder) {
  const Dataset dataset = make_dataset(10);
  Loader loader(dataset, small, {.batch_size = 4});
  EXPECT_EQ(loader.batches(), 3);
  Preprocessor preprocessor(small);
  std::vector<float> expected(4 * 4 * 3);
  Batch batch;
  int64_t next = 0;
  while (loader.next(batch)) {
    EXPECT_EQ(batch.size(), std::min<int64_t>(4, 10 - next));  // the last one is short
    EXPECT_EQ(batch.images.shape(), (Shape{batch.size(), 4, 4, 3}));
    for (int64_t i = 0; i < batch.size(); ++i, ++next) {
      const auto at = static_cast<size_t>(i);
      EXPECT_EQ(batch.indices[at], next);
      EXPECT_EQ(batch.labels[at], next % 7);
      preprocessor.run(dataset.pixels.data() + dataset.images[static_cast<size_t>(next)].offset, side, side, false,
                       expected.data());
      EXPECT_TRUE(std::ranges::equal(batch.images.slice(i, 1).span(), expected));
    }
  }
  EXPECT_EQ(next, 10);
  EXPECT_GT(loader.prepare_seconds(), 0);
  EXPECT_GE(loader.wait_seconds(), 0);
}

TEST(Loader, DoesNotDependOnTiming) {
  const Dataset dataset = make_dataset(23);
  for (const int64_t batch_size : {1, 5, 23, 100}) {
    const LoaderOptions options = {.batch_size = batch_size, .flip = true, .shuffle = true, .seed = 3, .epoch = 2};
    const auto expected = all_batches(dataset, options);
    EXPECT_EQ(expected.size(), static_cast<size_t>((23 + batch_size - 1) / batch_size));
    for (int run = 0; run < 5; ++run) EXPECT_EQ(all_batches(dataset, options, run % 2 == 0), expected);
  }
}

TEST(Loader, ResumesInsideAnEpoch) {
  const Dataset dataset = make_dataset(23);
  LoaderOptions options = {.batch_size = 5, .flip = true, .shuffle = true, .seed = 3, .epoch = 2};
  const auto whole = all_batches(dataset, options);
  for (options.first_batch = 0; options.first_batch <= 5; ++options.first_batch) {
    EXPECT_EQ(all_batches(dataset, options), std::vector(whole.begin() + options.first_batch, whole.end()));
  }
}

/// Whether an image is flipped depends on (seed, epoch, index), not on its place in the epoch.
TEST(Loader, FlipsHalfOfTheImagesWhateverTheirOrder) {
  const Dataset dataset = make_dataset(200);
  const auto images_by_index = [&](const LoaderOptions& options) {
    std::map<int64_t, std::vector<float>> images;
    for (const Copy& batch : all_batches(dataset, options)) {
      for (size_t i = 0; i < batch.indices.size(); ++i) {
        const auto begin = batch.images.begin() + static_cast<ptrdiff_t>(i * 4 * 4 * 3);
        images[batch.indices[i]].assign(begin, begin + 4 * 4 * 3);
      }
    }
    return images;
  };
  const auto straight = images_by_index({.batch_size = 16});
  const auto flipped = images_by_index({.batch_size = 16, .flip = true, .seed = 1});
  EXPECT_EQ(images_by_index({.batch_size = 7, .flip = true, .shuffle = true, .seed = 1}), flipped);
  EXPECT_NE(images_by_index({.batch_size = 16, .flip = true, .seed = 1, .epoch = 1}), flipped);
  int count = 0;
  for (const auto& [index, image] : flipped) {
    if (image == straight.at(index)) continue;
    ++count;
    for (size_t y = 0; y < 4; ++y) {
      for (size_t x = 0; x < 4; ++x) ASSERT_EQ(image[(y * 4 + x) * 3], straight.at(index)[(y * 4 + 3 - x) * 3]);
    }
  }
  EXPECT_GT(count, 70);  // 100 expected, deviation 7
  EXPECT_LT(count, 130);
}

/// Images of 32 x 32 whose pixels say where they were: red is x + 1, green y + 1.
Dataset make_rulers(int count) {
  Dataset dataset;
  for (int i = 0; i < count; ++i) {
    dataset.images.push_back({32, 32, dataset.pixels.size()});
    dataset.labels.push_back(0);
    for (int y = 0; y < 32; ++y)
      for (int x = 0; x < 32; ++x)
        for (const int value : {x + 1, y + 1, 200}) dataset.pixels.push_back(static_cast<uint8_t>(value));
  }
  return dataset;
}

TEST(Loader, ShiftsEveryImageByUpToAnEighth) {
  const Dataset dataset = make_rulers(400);
  Loader loader(dataset, small, {.batch_size = 400, .shift = true, .seed = 2, .epoch = 3, .raw = true});
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  EXPECT_TRUE(std::ranges::equal(batch.pixels, dataset.pixels));  // whoever prepares them moves them
  std::map<std::pair<int, int>, int> seen;
  for (const Augmentation& change : batch.augmentations) {
    ++seen[{change.right, change.down}];
    EXPECT_LE(std::abs(change.down), 4);
    EXPECT_EQ(change.mirrored, 0);
  }
  EXPECT_GT(seen.size(), 70U) << "of 81 ways";
  EXPECT_EQ(seen.begin()->first.first, -4);
  EXPECT_EQ(seen.rbegin()->first.first, 4);
}

TEST(Loader, PreparesWhatWasShiftedWithBlackBehindIt) {
  const Dataset dataset = make_rulers(40);
  LoaderOptions options = {.batch_size = 40, .flip = true, .shift = true, .seed = 2, .epoch = 3};
  const auto prepared = all_batches(dataset, options).front().images;
  options.raw = true;
  Loader loader(dataset, small, options);
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  Preprocessor preprocessor(small);
  std::vector<float> expected(prepared.size() / 40);
  for (int64_t i = 0; i < batch.size(); ++i) {
    const Augmentation change = batch.augmentations[static_cast<size_t>(i)];
    std::vector<uint8_t> moved;
    for (int y = -change.down; y < 32 - change.down; ++y)
      for (int x = -change.right; x < 32 - change.right; ++x) {
        const bool inside = x >= 0 && x < 32 && y >= 0 && y < 32;
        for (const int value : {x + 1, y + 1, 200}) moved.push_back(static_cast<uint8_t>(inside ? value : 0));
      }
    preprocessor.run(moved.data(), 32, 32, change.mirrored != 0, expected.data());
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), prepared.begin() + i * std::ssize(expected))) << i;
  }
}

TEST(Loader, ShiftsAreThoseOfSeedEpochAndImageAlone) {
  const Dataset dataset = make_rulers(20);
  const LoaderOptions options = {.batch_size = 20, .flip = true, .shift = true, .seed = 2, .epoch = 3};
  const auto whole = all_batches(dataset, options).front().images;
  const auto halves = all_batches(dataset, {.batch_size = 10, .flip = true, .shift = true, .seed = 2, .epoch = 3});
  ASSERT_EQ(halves.size(), 2U);
  EXPECT_TRUE(std::equal(halves[0].images.begin(), halves[0].images.end(), whole.begin()));
  const auto later = all_batches(dataset, {.batch_size = 20, .flip = true, .shift = true, .seed = 2, .epoch = 4});
  EXPECT_NE(later.front().images, whole);
  EXPECT_NE(all_batches(dataset, {.batch_size = 20, .flip = true, .seed = 2, .epoch = 3}).front().images, whole);
}

TEST(Loader, HidesASquareAsAFunctionOfSeedEpochAndImage) {
  const Dataset dataset = make_rulers(40);
  const LoaderOptions options = {.batch_size = 40, .cut = true, .seed = 2, .epoch = 3, .raw = true};
  Loader loader(dataset, small, options), again(dataset, small, options);
  Batch batch, same;
  ASSERT_TRUE(loader.next(batch) && again.next(same));
  EXPECT_TRUE(std::ranges::equal(batch.pixels.span(), same.pixels.span()));
  const size_t bytes = 32 * 32 * 3;
  for (size_t i = 0; i < 40; ++i) {
    int left = 32, right = -1, top = 32, bottom = -1, hidden = 0;
    for (int y = 0; y < 32; ++y)
      for (int x = 0; x < 32; ++x) {
        const uint8_t* pixel = batch.pixels.data() + i * bytes + static_cast<size_t>(y * 32 + x) * 3;
        if (pixel[2] == 200) {  // as it was
          EXPECT_EQ(pixel[0], x + 1);
          continue;
        }
        EXPECT_EQ(pixel[0], 124);
        ++hidden;
        left = std::min(left, x), right = std::max(right, x), top = std::min(top, y), bottom = std::max(bottom, y);
      }
    EXPECT_EQ(hidden, (right - left + 1) * (bottom - top + 1)) << "a whole rectangle";
    EXPECT_GE(hidden, 8 * 8);
    EXPECT_LE(std::max(right - left, bottom - top), 15);
  }
}

TEST(EpochOrder, ShufflesAsAFunctionOfSeedAndEpoch) {
  EXPECT_THAT(epoch_order(4, false, 1, 1), ElementsAre(0, 1, 2, 3));
  const auto order = epoch_order(1000, true, 1, 1);
  EXPECT_EQ(epoch_order(1000, true, 1, 1), order);
  EXPECT_NE(epoch_order(1000, true, 2, 1), order);
  EXPECT_NE(epoch_order(1000, true, 1, 2), order);
  auto sorted = order;
  std::ranges::sort(sorted);
  EXPECT_NE(sorted, order);
  EXPECT_EQ(sorted, epoch_order(1000, false, 0, 0));
  EXPECT_TRUE(epoch_order(0, true, 1, 1).empty());
  EXPECT_THAT(epoch_order(1, true, 1, 1), ElementsAre(0));
  EXPECT_THROW(epoch_order(-1, true, 1, 1), UsageError);
}

/// Each element lands on each place equally often.
TEST(EpochOrder, IsFair) {
  std::array<std::array<int, 4>, 4> counts{};
  for (int64_t epoch = 0; epoch < 4000; ++epoch) {
    const auto order = epoch_order(4, true, 9, epoch);
    for (size_t place = 0; place < 4; ++place) ++counts.at(place).at(static_cast<size_t>(order[place]));
  }
  for (const auto& row : counts) {
    for (const int count : row) EXPECT_NEAR(count, 1000, 5 * 27.4);  // deviation: sqrt(4000 * 1/4 * 3/4)
  }
}

TEST(Loader, AnEmptyDataSetHasNoBatches) {
  const Dataset dataset;
  Loader loader(dataset, small, {});
  EXPECT_EQ(loader.batches(), 0);
  Batch batch;
  EXPECT_FALSE(loader.next(batch));
}

TEST(Loader, RethrowsWhatTheThreadThrewAfterTheGoodBatches) {
  Dataset dataset = make_dataset(12);
  dataset.images[9].offset = dataset.pixels.size() - 1;
  for (int run = 0; run < 20; ++run) {
    Loader loader(dataset, small, {.batch_size = 4});
    Batch batch;
    EXPECT_TRUE(loader.next(batch));
    EXPECT_TRUE(loader.next(batch));
    EXPECT_THROW(loader.next(batch), ShapeError);
    EXPECT_THROW(loader.next(batch), ShapeError);
  }
  dataset.images[0].width = -1;
  Loader loader(dataset, small, {.batch_size = 4});
  Batch batch;
  EXPECT_THROW(loader.next(batch), ShapeError);
}

TEST(Loader, CanEndAtAnyTime) {
  const Dataset dataset = make_dataset(500);
  for (int run = 0; run < 60; ++run) {
    Loader loader(dataset, small, {.batch_size = 50});
    Batch batch;
    for (int i = 0; i < run % 12; ++i) loader.next(batch);
    if (run % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

TEST(Loader, ItsMemoryIsMeteredAsData) {
  const Dataset dataset = make_dataset(20);
  const size_t before = host_memory().meter().live(MemoryCategory::data);
  {
    Loader loader(dataset, small, {.batch_size = 8});
    const size_t per_image = 4 * 4 * 3 * sizeof(float) + sizeof(int32_t) + sizeof(int64_t);
    EXPECT_EQ(host_memory().meter().live(MemoryCategory::data) - before, 2 * 8 * per_image);
  }
  EXPECT_EQ(host_memory().meter().live(MemoryCategory::data), before);
}

TEST(Loader, RefusesImpossibleOptions) {
  Dataset dataset = make_dataset(10);
  const auto load = [&](const LoaderOptions& options) { Loader loader(dataset, small, options); };
  EXPECT_THROW(load({.batch_size = 0}), UsageError);
  EXPECT_THROW(load({.batch_size = 5, .first_batch = 3}), UsageError);
  EXPECT_THROW(load({.batch_size = 5, .first_batch = -1}), UsageError);
  dataset.labels.pop_back();
  EXPECT_THROW(load({}), ShapeError);
}

/// The images of raw batches, by index, with what they were mixed with.
struct RawImage {
  std::vector<uint8_t> pixels;
  int64_t partner = -1;
  double share = 1;
  friend bool operator==(const RawImage&, const RawImage&) = default;
};
std::map<int64_t, RawImage> raw_images(const Dataset& dataset, LoaderOptions options) {
  options.raw = true;
  Loader loader(dataset, small, options);
  std::map<int64_t, RawImage> images;
  for (Batch batch; loader.next(batch);)
    for (size_t i = 0; i < batch.indices.size(); ++i) {
      const auto pixels = batch.pixels.slice(static_cast<int64_t>(i), 1).span();
      RawImage& image = images[batch.indices[i]];
      image.pixels.assign(pixels.begin(), pixels.end());
      if (!options.mixing.enabled()) {
        EXPECT_TRUE(batch.partners.empty() && batch.shares.empty());
        continue;
      }
      image.partner = batch.partners[i];
      image.share = batch.shares[i];
      EXPECT_EQ(batch.augmentations[i].mirrored, 0) << "it is in the bytes";
    }
  return images;
}

TEST(Loader, MixesEveryImageWithAnotherByItsShare) {
  const Dataset dataset = make_dataset(200);
  const auto plain = raw_images(dataset, {.batch_size = 16});
  const LoaderOptions options = {.batch_size = 16, .mixing = {.mixup = 1}, .seed = 4};
  const auto mixed = raw_images(dataset, options);
  double shares = 0, squares = 0;
  std::map<int64_t, int> partners;
  for (const auto& [index, image] : mixed) {
    ++partners[image.partner];
    shares += image.share;
    squares += image.share * image.share;
    for (size_t i = 0; i < image.pixels.size(); ++i)
      EXPECT_NEAR(image.pixels[i],
                  image.share * plain.at(index).pixels[i] + (1 - image.share) * plain.at(image.partner).pixels[i],
                  0.5001);
  }
  EXPECT_NEAR(shares / 200, 0.5, 0.08) << "Beta(1, 1) is uniform";
  EXPECT_NEAR(squares / 200, 1.0 / 3, 0.08);
  EXPECT_GT(partners.size(), 100U);
  LoaderOptions other = options;
  other.shuffle = true;
  other.batch_size = 7;
  EXPECT_EQ(raw_images(dataset, other), mixed) << "neither order nor batches matter";
  other.epoch = 1;
  EXPECT_NE(raw_images(dataset, other), mixed);
  other.epoch = 0;
  other.seed = 5;
  EXPECT_NE(raw_images(dataset, other), mixed);
}

TEST(Loader, PastesARectangleAndCountsItsArea) {
  const Dataset dataset = make_dataset(200);
  const auto plain = raw_images(dataset, {});
  int some = 0;
  for (const auto& [index, image] : raw_images(dataset, {.mixing = {.cutmix = 1}, .seed = 4})) {
    int pasted = 0, left = side, right = 0, top = side, bottom = 0;
    for (int p = 0; p < side * side; ++p) {
      const auto at = static_cast<size_t>(3 * p);
      const auto same_as = [&](const std::vector<uint8_t>& other) {
        return std::equal(other.begin() + 3 * p, other.begin() + 3 * p + 3, image.pixels.begin() + 3 * p);
      };
      ASSERT_LT(at, image.pixels.size());
      if (same_as(plain.at(index).pixels)) continue;
      ASSERT_TRUE(same_as(plain.at(image.partner).pixels));
      ++pasted;
      left = std::min(left, p % side);
      right = std::max(right, p % side + 1);
      top = std::min(top, p / side);
      bottom = std::max(bottom, p / side + 1);
    }
    if (image.partner == index) continue;
    EXPECT_EQ(pasted, std::max(0, right - left) * std::max(0, bottom - top)) << "it is a rectangle";
    EXPECT_NEAR(image.share, 1 - static_cast<double>(pasted) / (side * side), 1e-12);
    some += pasted > 0 && pasted < side * side ? 1 : 0;
  }
  EXPECT_GT(some, 100);
}

TEST(Loader, MixesImagesThatAreAugmentedEachByItself) {
  const Dataset dataset = make_dataset(50);
  const LoaderOptions augmented = {.flip = true, .shift = true, .cut = true, .seed = 2};
  LoaderOptions options = augmented;
  options.mixing = {.mixup = 0.4, .cutmix = 1};
  // The images alone, by mixes that leave nothing of the partner.
  LoaderOptions alone = augmented;
  alone.mixing = {.mixup = 1e-9};
  const auto images = raw_images(dataset, alone);
  std::map<int64_t, std::vector<uint8_t>> known;
  for (const auto& [index, image] : images) {
    EXPECT_TRUE(image.share == 0 || image.share == 1) << image.share;
    known[image.share == 1 ? index : image.partner] = image.pixels;
  }
  int checked = 0;
  for (const auto& [index, image] : raw_images(dataset, options)) {
    if (!known.contains(index) || !known.contains(image.partner)) continue;
    ++checked;
    int outside = 0;
    for (size_t i = 0; i < image.pixels.size(); ++i) {
      const int a = known[index][i], b = known[image.partner][i];
      outside += image.pixels[i] < std::min(a, b) || image.pixels[i] > std::max(a, b) ? 1 : 0;
    }
    EXPECT_EQ(outside, 0);
  }
  EXPECT_GT(checked, 10);
}

TEST(Loader, ImagesOfOtherSizesAreNotMixed) {
  Dataset dataset = make_dataset(10);
  for (Dataset::Image& image : dataset.images) image.height = side;
  dataset.images.back().width = side - 1;
  Loader loader(dataset, small, {.mixing = {.mixup = 1}});
  Batch batch;
  EXPECT_THROW(loader.next(batch), UsageError);
}

TEST(Loader, MirrorsEveryImage) {
  const Dataset dataset = make_dataset(5);
  const auto plain = raw_images(dataset, {}), mirrored = raw_images(dataset, {.mirror = true});
  for (const auto& [index, image] : mirrored)
    for (size_t p = 0; p < side * side; ++p)
      for (size_t c = 0; c < 3; ++c)
        EXPECT_EQ(image.pixels[3 * p + c], plain.at(index).pixels[3 * (p / side * side + side - 1 - p % side) + c]);
}

TEST(Beta, HasItsMomentsAndStaysInRange) {
  for (const double alpha : {0.01, 0.2, 1.0, 8.0}) {
    Random random(3);
    double sum = 0, squares = 0;
    constexpr int count = 20000;
    for (int i = 0; i < count; ++i) {
      const double x = draw_beta(random, alpha);
      ASSERT_TRUE(x >= 0 && x <= 1) << x;
      sum += x - 0.5;
      squares += (x - 0.5) * (x - 0.5);
    }
    EXPECT_NEAR(sum / count, 0, 0.015);
    EXPECT_NEAR(squares / count, 1 / (4 * (2 * alpha + 1)), 0.006) << alpha;  // the variance
  }
}

}  // namespace
}  // namespace nibblenet
