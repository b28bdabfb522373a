#include <gtest/gtest.h>

#include <cmath>

#include "engine/io/dataset.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using namespace testing;

TEST(Standin, ReadsBackAsADataSet) {
  const TemporaryFolder folder;
  write_standin(folder.path() / "new/folder", 103, 20, 1);
  const Dataset train = load_dataset(folder.path() / "new/folder", Split::train);
  EXPECT_EQ(train.description, "stand-in");
  EXPECT_TRUE(std::ranges::equal(train.classes, standin_classes()));
  EXPECT_EQ(train.size(), 103);
  EXPECT_EQ(load_dataset(folder.path() / "new/folder", Split::test).size(), 20);
  std::array<int, 10> counts{};
  for (size_t i = 0; i < 100; ++i) ++counts.at(train.labels[i]);
  for (const int count : counts) EXPECT_EQ(count, 10);
}

TEST(Standin, IsAFunctionOfItsSeed) {
  const TemporaryFolder folder;
  write_standin(folder.path() / "a", 20, 20, 1);
  write_standin(folder.path() / "b", 20, 20, 1);
  write_standin(folder.path() / "c", 20, 20, 2);
  const auto pixels = [&](const char* name, Split split) { return load_dataset(folder.path() / name, split).pixels; };
  EXPECT_EQ(pixels("a", Split::train), pixels("b", Split::train));
  EXPECT_NE(pixels("a", Split::train), pixels("c", Split::train));
  EXPECT_NE(pixels("a", Split::train), pixels("a", Split::test));
}

TEST(Standin, ReplacesAnOlderOneButNoOtherData) {
  const TemporaryFolder folder;
  write_standin(folder.path() / "a", 50, 10, 1);
  write_standin(folder.path() / "a", 3, 1, 1);  // fewer images than files
  EXPECT_EQ(load_dataset(folder.path() / "a", Split::train).size(), 3);
  write_bytes(folder.path() / "real/data_batch_1.bin", cifar_batch({1}));
  EXPECT_THROW(write_standin(folder.path() / "real", 10, 10, 1), UsageError);
  write_bytes(folder.path() / "named/batches.meta.txt", bytes_of_text("airplane\n"));
  EXPECT_THROW(write_standin(folder.path() / "named", 10, 10, 1), UsageError);
}

TEST(Standin, RefusesWhatItCannotWrite) {
  const TemporaryFolder folder;
  EXPECT_THROW(write_standin(folder.path(), 0, 10, 1), UsageError);
  EXPECT_THROW(write_standin(folder.path(), 10, -1, 1), UsageError);
  write_bytes(folder.path() / "file", Bytes{1});
  EXPECT_THROW(write_standin(folder.path() / "file", 10, 10, 1), IoError);
}

/// The mean colour must not give the class away: the classes' means lie close together compared
/// with the images'.
TEST(Standin, MeanColourSaysLittle) {
  const TemporaryFolder folder;
  write_standin(folder.path(), 1000, 10, 5);
  const Dataset dataset = load_dataset(folder.path(), Split::train);
  std::array<double, 10> class_mean{};
  double mean = 0;
  double square = 0;
  for (size_t i = 0; i < dataset.images.size(); ++i) {
    double sum = 0;
    for (size_t p = 0; p < 3072; ++p) sum += dataset.pixels[dataset.images[i].offset + p];
    sum /= 3072;
    class_mean.at(dataset.labels[i]) += sum / 100;
    mean += sum / 1000;
    square += sum * sum / 1000;
  }
  const double deviation = std::sqrt(square - mean * mean);
  EXPECT_GT(deviation, 15);
  // A mean of 100 images scatters by a tenth of their deviation; four of those is chance.
  for (const double of_class : class_mean) EXPECT_LT(std::abs(of_class - mean), 0.4 * deviation);
}

}  // namespace
}  // namespace nibblenet
