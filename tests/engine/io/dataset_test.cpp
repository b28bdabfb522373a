#include "engine/io/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using namespace testing;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string refusal(const std::filesystem::path& path, Split split = Split::train, int64_t limit = 0) {
  return message_of<FormatError>([&] { load_dataset(path, split, limit); });
}

/// The first byte of each image tells which one it is.
std::vector<int> first_bytes(const Dataset& dataset) {
  std::vector<int> bytes;
  for (const auto& image : dataset.images) bytes.push_back(dataset.pixels.at(image.offset));
  return bytes;
}

std::vector<FileToPack> cifar_files(const std::string& prefix) {
  // Not in the order of their numbers, as in the official archive.
  return {{prefix + "data_batch_2.bin", cifar_batch({7, 8})},
          {prefix + "test_batch.bin", cifar_batch({9})},
          {prefix + "readme.html", {1}},
          {prefix + "data_batch_1.bin", cifar_batch({0, 1, 2})}};
}

TEST(Cifar10, ReadsFoldersAndArchivesAlike) {
  const TemporaryFolder folder;
  for (const std::string prefix : {"", "cifar-10-batches-bin/"}) {
    const auto plain = folder.path() / ("plain" + prefix);
    for (const auto& file : cifar_files(prefix)) write_bytes(plain / file.name, file.content);
    write_tar(folder.path() / "x.tar", cifar_files(prefix));
    write_tar(folder.path() / "x.tar.gz", cifar_files(prefix));
    for (const auto& path : {plain, folder.path() / "x.tar", folder.path() / "x.tar.gz"}) {
      const Dataset train = load_dataset(path, Split::train);
      EXPECT_EQ(train.description, "CIFAR-10 (binary)");
      EXPECT_TRUE(std::ranges::equal(train.classes, cifar10_classes()));
      EXPECT_THAT(train.labels, ElementsAre(0, 1, 2, 7, 8)) << path;
      EXPECT_THAT(first_bytes(train), ElementsAre(0, 1, 2, 0, 1));
      EXPECT_THAT(load_dataset(path, Split::test).labels, ElementsAre(9));
    }
  }
}

TEST(Cifar10, InterleavesThePlanes) {
  const TemporaryFolder folder;
  write_bytes(folder.path() / "test_batch.bin", cifar_record(3, 10, 20, 30));
  const Dataset dataset = load_dataset(folder.path(), Split::test);
  ASSERT_EQ(dataset.size(), 1);
  EXPECT_EQ(dataset.images[0].width, 32);
  EXPECT_EQ(dataset.images[0].height, 32);
  ASSERT_EQ(dataset.pixels.size(), 3072U);
  EXPECT_EQ(Bytes(dataset.pixels.begin(), dataset.pixels.begin() + 9), (Bytes{10, 20, 30, 11, 21, 31, 10, 20, 30}));
}

TEST(Cifar10, TakesClassNamesFromTheDataSet) {
  const TemporaryFolder folder;
  write_bytes(folder.path() / "test_batch.bin", cifar_batch({0, 2}));
  write_bytes(folder.path() / "batches.meta.txt", bytes_of_text("red\r\nlight green\nblue\n\n"));
  EXPECT_THAT(load_dataset(folder.path(), Split::test).classes, ElementsAre("red", "light green", "blue"));
  write_bytes(folder.path() / "batches.meta.txt", bytes_of_text("red\ngreen\n"));
  EXPECT_THAT(refusal(folder.path(), Split::test), HasSubstr("record 1 has label 2; expected 0 to 1"));
  write_bytes(folder.path() / "batches.meta.txt", bytes_of_text("\n\n"));
  EXPECT_THAT(refusal(folder.path(), Split::test), HasSubstr("batches.meta.txt"));
  write_bytes(folder.path() / "batches.meta.txt", Bytes{'a', 0, '\n'});
  EXPECT_THAT(refusal(folder.path(), Split::test), HasSubstr("control character"));
}

TEST(Cifar10, LimitKeepsTheFirstOfEachClassInOrder) {
  const TemporaryFolder folder;
  write_bytes(folder.path() / "batches.meta.txt", bytes_of_text("a\nb\n"));
  write_bytes(folder.path() / "data_batch_1.bin", cifar_batch({1, 1, 0, 1, 0, 1, 0, 0}));
  const auto kept = [&](int64_t limit) { return first_bytes(load_dataset(folder.path(), Split::train, limit)); };
  EXPECT_THAT(kept(2), ElementsAre(0, 2));
  EXPECT_THAT(kept(4), ElementsAre(0, 1, 2, 4));
  EXPECT_THAT(kept(5), ElementsAre(0, 1, 2, 4));
  EXPECT_EQ(kept(100).size(), 8U);
  EXPECT_THROW(kept(1), UsageError);
  EXPECT_THROW(kept(-2), UsageError);
}

TEST(Dataset, ASubsetIsChosenByThePlaceWithinTheClass) {
  const TemporaryFolder folder;
  write_bytes(folder.path() / "batches.meta.txt", bytes_of_text("a\nb\n"));
  write_bytes(folder.path() / "data_batch_1.bin", cifar_batch({1, 1, 0, 1, 0, 1, 0, 0}));
  const Dataset all = load_dataset(folder.path(), Split::train);
  const Dataset second = subset(all, [](int64_t position, int64_t) { return position == 1; });
  EXPECT_THAT(first_bytes(second), ElementsAre(1, 4));
  EXPECT_THAT(second.labels, ElementsAre(1, 0));
  EXPECT_EQ(second.classes, all.classes);
  EXPECT_THAT(first_bytes(subset(all, [](int64_t position, int64_t size) { return position == size - 1; })),
              ElementsAre(5, 7));
  EXPECT_EQ(subset(all, [](int64_t, int64_t) { return false; }).size(), 0);
}

TEST(Cifar10, RefusesBrokenBatches) {
  const TemporaryFolder folder;
  const auto batch = folder.path() / "data_batch_1.bin";
  const Bytes good = cifar_batch({1, 2});
  for (const size_t length : {0UL, 1UL, 3072UL, 3074UL, 6145UL}) {
    write_bytes(batch, std::span(good).first(length));
    EXPECT_THAT(refusal(folder.path()), HasSubstr("data_batch_1.bin")) << length;
    EXPECT_THAT(refusal(folder.path()), HasSubstr("3073")) << length;
  }
  write_bytes(batch, cifar_batch({1, 10}));
  EXPECT_THAT(refusal(folder.path()), HasSubstr("label 10"));
  write_bytes(batch, good);
  EXPECT_THAT(refusal(folder.path(), Split::test), HasSubstr("test_batch.bin"));
  write_bytes(folder.path() / "data_batch_3.bin", good);
  EXPECT_THAT(refusal(folder.path()), HasSubstr("only 2 of the 3"));
  write_bytes(folder.path() / "data_batch_2.bin", good);
  EXPECT_EQ(load_dataset(folder.path(), Split::train).size(), 6);
  write_bytes(folder.path() / "copy" / "data_batch_2.bin", good);
  EXPECT_THAT(refusal(folder.path()), HasSubstr("same batch"));
}

Bytes colour(uint8_t value) { return plain_png(2, 3, {value, 0, 0}); }

TEST(ImageFolder, ReadsFoldersAndArchivesAlike) {
  const TemporaryFolder folder;
  for (const std::string prefix : {"", "photos/"}) {
    const std::vector<FileToPack> files = {
        {prefix + "train/wolf/b.png", colour(2)},   {prefix + "test/wolf/x.PNG", colour(9)},
        {prefix + "train/ape/z.png", colour(3)},    {prefix + "train/wolf/a.png", colour(1)},
        {prefix + "train/ape/g.jpeg", grey_jpeg()}, {prefix + "train/ape/notes.txt", {1}}};
    const auto plain = folder.path() / ("plain-" + prefix);
    for (const auto& file : files) write_bytes(plain / file.name, file.content);
    write_tar(folder.path() / "x.tar", files);
    write_tar(folder.path() / "x.tar.gz", files);
    for (const auto& path : {plain, folder.path() / "x.tar", folder.path() / "x.tar.gz"}) {
      const Dataset train = load_dataset(path, Split::train);
      EXPECT_EQ(train.description, "image folder");
      EXPECT_THAT(train.classes, ElementsAre("ape", "wolf"));
      EXPECT_THAT(train.labels, ElementsAre(0, 0, 1, 1)) << path;
      EXPECT_THAT(first_bytes(train), ElementsAre(123, 3, 1, 2));
      EXPECT_EQ(train.images[0].width, 8);
      EXPECT_EQ(train.images[1].width, 2);
      EXPECT_EQ(train.images[1].height, 3);
      EXPECT_EQ(train.pixels.size(), 8U * 8 * 3 + 3 * 2 * 3 * 3);
      // The same labels in both splits, although this one has no ape.
      const Dataset test = load_dataset(path, Split::test);
      EXPECT_THAT(test.classes, ElementsAre("ape", "wolf"));
      EXPECT_THAT(test.labels, ElementsAre(1));
    }
  }
}

TEST(ImageFolder, FollowsCifar10sLabelOrderForItsClasses) {
  const TemporaryFolder folder;
  write_bytes(folder.path() / "train/truck/a.png", colour(1));
  write_bytes(folder.path() / "train/automobile/a.png", colour(2));
  const Dataset dataset = load_dataset(folder.path(), Split::train);
  EXPECT_THAT(dataset.labels, ElementsAre(1, 9));
  EXPECT_TRUE(std::ranges::equal(dataset.classes, cifar10_classes()));
  write_bytes(folder.path() / "train/zebra/a.png", colour(3));
  EXPECT_THAT(load_dataset(folder.path(), Split::train).classes, ElementsAre("automobile", "truck", "zebra"));
}

TEST(ImageFolder, LimitKeepsTheFirstOfEachClass) {
  const TemporaryFolder folder;
  for (uint8_t i = 0; i < 5; ++i) {
    write_bytes(folder.path() / fmt::format("train/a/{}.png", i), colour(i));
    write_bytes(folder.path() / fmt::format("train/b/{}.png", i), colour(static_cast<uint8_t>(10 + i)));
  }
  const auto kept = [&](int64_t limit) { return first_bytes(load_dataset(folder.path(), Split::train, limit)); };
  EXPECT_THAT(kept(5), ElementsAre(0, 1, 10, 11));
  EXPECT_EQ(kept(0).size(), 10U);
  EXPECT_THAT(message_of<UsageError>([&] { kept(1); }), HasSubstr("at least 2"));
}

TEST(ImageFolder, NamesTheFirstBrokenPictureWhateverTheTiming) {
  const TemporaryFolder folder;
  for (int i = 0; i < 200; ++i)
    write_bytes(folder.path() / fmt::format("train/a/{:03}.png", i), i % 50 == 33 ? Bytes{1, 2, 3} : colour(1));
  for (int run = 0; run < 10; ++run) EXPECT_THAT(refusal(folder.path()), HasSubstr("train/a/033.png"));
  EXPECT_THAT(refusal(folder.path()), HasSubstr("4 of 200 pictures cannot be read"));
}

TEST(ImageFolder, LeavesOutUnreadablePicturesWhenAsked) {
  const TemporaryFolder folder;
  const std::vector<FileToPack> files = {{"train/cat/1.png", colour(1)}, {"train/cat/2.png", {1, 2, 3}},
                                         {"train/cat/3.webp", {1}},      {"train/cat/4.png", {}},
                                         {"train/dog/5.png", colour(5)}, {"train/dog/6.png", colour(6)},
                                         {"test/dog/7.gif", {1}},        {"test/dog/8.png", colour(8)}};
  for (const auto& file : files) write_bytes(folder.path() / "plain" / file.name, file.content);
  write_tar(folder.path() / "x.tar.gz", files);
  for (const auto& path : {folder.path() / "plain", folder.path() / "x.tar.gz"}) {
    SCOPED_TRACE(path);
    EXPECT_THAT(refusal(path),
                AllOf(HasSubstr("2.png is no JPEG"), HasSubstr("3 of 6"), HasSubstr("--skip-unreadable")));
    EXPECT_THAT(refusal(path, Split::test), AllOf(HasSubstr("7.gif"), HasSubstr("1 of 2")));
    const Dataset train = load_dataset(path, Split::train, 0, Unreadable::skip);
    EXPECT_THAT(first_bytes(train), ElementsAre(1, 5, 6));
    EXPECT_THAT(train.labels, ElementsAre(3, 5, 5));
    EXPECT_THAT(train.skipped, ElementsAre(HasSubstr("2.png"), HasSubstr("3.webp"), HasSubstr("4.png")));
    EXPECT_EQ(subset(train, [](int64_t, int64_t) { return true; }).skipped, train.skipped);
    EXPECT_THAT(first_bytes(load_dataset(path, Split::test, 0, Unreadable::skip)), ElementsAre(8));
    // Those beyond the limit are not looked at; CIFAR-10's classes are ten.
    EXPECT_THAT(load_dataset(path, Split::train, 10).skipped, ElementsAre());
    EXPECT_THAT(load_dataset(path, Split::train, 20, Unreadable::skip).skipped, ElementsAre(HasSubstr("2.png")));
  }
}

TEST(ImageFolder, AClassWithoutReadablePicturesIsAnErrorAllTheSame) {
  const TemporaryFolder folder;
  const auto skipping = [&](Split split) {
    return message_of<FormatError>([&] { load_dataset(folder.path(), split, 0, Unreadable::skip); });
  };
  write_bytes(folder.path() / "train/ape/1.png", colour(1));
  write_bytes(folder.path() / "train/elk/2.webp", Bytes{1});
  write_bytes(folder.path() / "train/elk/3.png", Bytes{1});
  write_bytes(folder.path() / "test/elk/4.tiff", Bytes{1});
  EXPECT_THAT(skipping(Split::train),
              AllOf(HasSubstr("none of the 2 pictures of the class 'elk'"), HasSubstr("2.webp")));
  EXPECT_THAT(skipping(Split::test), HasSubstr("4.tiff"));
  write_bytes(folder.path() / "train/elk/5.png", colour(5));
  EXPECT_EQ(load_dataset(folder.path(), Split::train, 0, Unreadable::skip).size(), 2);
}

TEST(ImageFolder, ADamagedArchiveIsNoUnreadablePicture) {
  const TemporaryFolder folder;
  std::vector<FileToPack> files;
  for (uint8_t i = 0; i < 20; ++i) files.push_back({fmt::format("train/a/{}.png", i), colour(i)});
  for (const char* name : {"whole.tar", "whole.tar.gz"}) {
    write_tar(folder.path() / name, files);
    const Bytes whole = read_bytes(folder.path() / name);
    const auto cut = folder.path() / fmt::format("cut-{}", name);
    // The tar ends inside a picture.
    write_bytes(cut,
                std::span(whole).first(std::string_view(name).ends_with("gz") ? whole.size() / 2 : 10 * 1024 + 540));
    EXPECT_THAT(message_of<FormatError>([&] { load_dataset(cut, Split::train, 0, Unreadable::skip); }),
                HasSubstr("truncated or corrupt"));
  }
}

/// torchvision's ImageFolder sorts folders by their whole path, then the files of each.
TEST(ImageFolder, ReadsTheFoldersInsideAClass) {
  const TemporaryFolder folder;
  for (const char* root : {"", "photos/"}) {
    std::vector<FileToPack> files;
    uint8_t byte = 0;
    for (const char* name : {"cat/z.png", "cat/a b/y.png", "cat/a/b/x.png", "cat/a/w.png", "dog/deep/1/2/v.png"})
      files.push_back({root + std::string("train/") + name, colour(++byte)});
    const auto plain = folder.path() / fmt::format("plain{}", root);
    for (const auto& file : files) write_bytes(plain / file.name, file.content);
    std::filesystem::create_directory_symlink(plain / root, plain / root / "train/cat/a/back");
    write_tar(folder.path() / "x.tar", files);
    for (const auto& path : {plain, folder.path() / "x.tar"}) {
      const Dataset dataset = load_dataset(path, Split::train);
      EXPECT_THAT(dataset.labels, ElementsAre(3, 3, 3, 3, 5)) << path;
      EXPECT_THAT(first_bytes(dataset), ElementsAre(1, 4, 2, 3, 5)) << path;
    }
  }
}

TEST(ImageFolder, RefusesWhatItCannotTell) {
  const TemporaryFolder folder;
  EXPECT_THAT(refusal(folder.path()), HasSubstr("holds no data set"));
  EXPECT_THROW(load_dataset(folder.path() / "missing", Split::train), IoError);
  write_bytes(folder.path() / "data.zip", bytes_of_text(std::string(3000, 'P')));
  EXPECT_THAT(refusal(folder.path() / "data.zip"), HasSubstr("data.zip"));

  write_bytes(folder.path() / "f/train/a/1.png", colour(1));
  EXPECT_THAT(refusal(folder.path() / "f", Split::test), HasSubstr("no pictures in test/"));
  write_bytes(folder.path() / "f/copy/test/a/1.png", colour(1));
  EXPECT_THAT(refusal(folder.path() / "f"), HasSubstr("more than one data set"));
  write_bytes(folder.path() / "g/train/a/1.webp", colour(1));
  EXPECT_THAT(refusal(folder.path() / "g"), HasSubstr("supported are .jpg, .jpeg, .png and .bmp"));
  write_bytes(folder.path() / "h/train/a/1.png", colour(1));
  write_bytes(folder.path() / "h/test_batch.bin", cifar_batch({1}));
  EXPECT_THAT(refusal(folder.path() / "h"), HasSubstr("both"));
  write_tar(folder.path() / "twice.tar", {{"train/a/1.png", colour(1)}, {"train/a/1.png", colour(2)}});
  EXPECT_THAT(refusal(folder.path() / "twice.tar"), HasSubstr("twice"));
}

TEST(ImageFolder, RefusesTruncatedArchives) {
  const TemporaryFolder folder;
  std::vector<FileToPack> files;
  for (int i = 0; i < 20; ++i) files.push_back({fmt::format("train/a/{}.png", i), colour(static_cast<uint8_t>(i))});
  write_tar(folder.path() / "whole.tar.gz", files);
  const Bytes whole = read_bytes(folder.path() / "whole.tar.gz");
  write_bytes(folder.path() / "cut.tar.gz", std::span(whole).first(whole.size() / 2));
  EXPECT_THAT(refusal(folder.path() / "cut.tar.gz"), HasSubstr("cut.tar.gz"));
}

/// CIFAR-10 as JPEG files, where NIBBLENET_DATA names a folder with cifar10-jpeg.tar.gz.
TEST(ImageFolder, ReadsCifar10AsJpeg) {
  const char* data = std::getenv("NIBBLENET_DATA");
  const auto path = std::filesystem::path(data != nullptr ? data : "") / "cifar10-jpeg.tar.gz";
  if (data == nullptr || !std::filesystem::exists(path)) GTEST_SKIP() << "NIBBLENET_DATA has no cifar10-jpeg.tar.gz";
  const Dataset dataset = load_dataset(path, Split::test);
  ASSERT_EQ(dataset.size(), 10'000);
  EXPECT_TRUE(std::ranges::equal(dataset.classes, cifar10_classes()));
  for (size_t i = 0; i < dataset.labels.size(); ++i) ASSERT_EQ(dataset.labels[i], i / 1000);
  EXPECT_EQ(dataset.pixels.size(), 10'000U * 3072);
}

}  // namespace
}  // namespace nibblenet
