#include "engine/io/cifar10_python.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ranges>

#include "engine/io/dataset.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using namespace testing;
using namespace std::string_literals;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* written[] = {"python2", "python3_protocol2", "numpy1_protocol3", "numpy2_protocol4",
                                   "numpy2_protocol5"};

/// A file of tests/data/cifar10_python: two images as some program pickled them, or in the binary
/// version.
Bytes fixture(const std::string& name) { return read_bytes(test_data_folder() / "cifar10_python" / name); }

Bytes replaced(Bytes file, const std::string& from, const std::string& to) {
  const auto at = std::ranges::search(file, bytes_of_text(from)).begin();
  if (at == file.end() || from.size() != to.size()) throw Error("the fixture has no such bytes: " + from);
  std::ranges::copy(to, at);
  return file;
}

std::string pickle_refusal(const Bytes& file) {
  return message_of<FormatError>([&] { records_of_pickle(file, "data_batch_1"); });
}

TEST(Cifar10Python, HoldsTheRecordsOfTheBinaryVersion) {
  for (const std::string name : written) EXPECT_EQ(records_of_pickle(fixture(name), name), fixture("binary")) << name;
  const Bytes names = bytes_of_text("airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n");
  for (const char* name : {"python2.meta", "python3_protocol2.meta", "numpy2_protocol5.meta"})
    EXPECT_EQ(names_of_pickle(fixture(name), name), names) << name;
}

TEST(Cifar10Python, FoldersAndArchivesReadAsTheBinaryVersion) {
  const TemporaryFolder folder;
  write_bytes(folder.path() / "binary/data_batch_1.bin", fixture("binary"));
  write_bytes(folder.path() / "binary/data_batch_2.bin", fixture("binary"));
  const Dataset binary = load_dataset(folder.path() / "binary", Split::train);
  for (const std::string prefix : {"", "cifar-10-batches-py/"}) {
    const std::vector<FileToPack> files = {{prefix + "data_batch_2", fixture("numpy2_protocol4")},
                                           {prefix + "batches.meta", fixture("python2.meta")},
                                           {prefix + "readme.html", {1}},
                                           {prefix + "test_batch", fixture("numpy2_protocol5")},
                                           {prefix + "data_batch_1", fixture("python2")}};
    const auto plain = folder.path() / ("plain" + prefix);
    for (const auto& file : files) write_bytes(plain / file.name, file.content);
    const auto archive = folder.path() / "cifar-10-python.tar.gz";
    write_tar(archive, files);
    for (const auto& path : {plain, archive}) {
      SCOPED_TRACE(path);
      const Dataset train = load_dataset(path, Split::train);
      EXPECT_EQ(train.description, "CIFAR-10 (Python)");
      EXPECT_EQ(train.classes, binary.classes);
      EXPECT_EQ(train.labels, binary.labels);
      EXPECT_EQ(train.pixels, binary.pixels);
      EXPECT_THAT(load_dataset(path, Split::test).labels, ElementsAre(6, 9));
      EXPECT_EQ(load_dataset(path, Split::train, 10).size(), 2);
    }
  }
}

TEST(Cifar10Python, TheBinaryVersionBesideItIsPreferred) {
  const TemporaryFolder folder;
  write_bytes(folder.path() / "cifar-10-batches-py/test_batch", Bytes{1});
  write_bytes(folder.path() / "cifar-10-batches-bin/test_batch.bin", fixture("binary"));
  EXPECT_EQ(load_dataset(folder.path(), Split::test).description, "CIFAR-10 (binary)");
}

TEST(Cifar10Python, RefusesWhatIsNoBatch) {
  const Bytes good = fixture("python2");
  for (const size_t length : {0UL, 1UL, 40UL, 200UL, good.size() - 1})
    EXPECT_THAT(pickle_refusal(Bytes(good.begin(), good.begin() + static_cast<ptrdiff_t>(length))),
                AllOf(HasSubstr("data_batch_1"), HasSubstr("cut off")))
        << length;
  EXPECT_THAT(pickle_refusal(fixture("binary")), HasSubstr("broken pickle"));
  EXPECT_THAT(pickle_refusal(replaced(good, "labels", "LABELS")), HasSubstr("no 'labels' that is a list"));
  EXPECT_THAT(pickle_refusal(replaced(good, "U\4data", "U\4DATA")), HasSubstr("no 'data' that is a NumPy array"));
  EXPECT_THAT(pickle_refusal(bytes_of_text("\x80\2]."s)), HasSubstr("no 'labels'"));
  Bytes more_labels = good;
  more_labels.insert(std::ranges::search(more_labels, "K\6"s).begin(), {'K', 1});
  EXPECT_THAT(pickle_refusal(more_labels), HasSubstr("no array of 3 x 3072 bytes"));
  // Other rows, columns, axes, types and order, and objects in the array's place.
  const std::string other = "no array of 2 x 3072 bytes";
  EXPECT_THAT(pickle_refusal(replaced(good, "K\2M\0\x0c\x86"s, "K\3M\0\x0c\x86"s)), HasSubstr(other));
  EXPECT_THAT(pickle_refusal(replaced(good, "K\2M\0\x0c\x86"s, "K\2M\0\x0d\x86"s)), HasSubstr(other));
  EXPECT_THAT(pickle_refusal(replaced(good, "K\2M\0\x0c\x86"s, "K\2M\0\x0c\x85"s)), HasSubstr(other));
  EXPECT_THAT(pickle_refusal(replaced(good, "U\2u1", "U\2i1")), HasSubstr(other));
  EXPECT_THAT(pickle_refusal(replaced(good, "tb\x89T", "tb\x88T")), HasSubstr(other));
  EXPECT_THAT(pickle_refusal(replaced(good, "_reconstruct", "_reconstruc_")), HasSubstr("no 'data'"));
  EXPECT_THAT(pickle_refusal(replaced(fixture("numpy2_protocol5"), "\x8c\1C", "\x8c\1F")), HasSubstr("no 'data'"));
  EXPECT_THAT(pickle_refusal(replaced(good, "K\6K\x09", "NK\7N")), HasSubstr("label"));
  // Labels that no class has.
  const TemporaryFolder folder;
  write_bytes(folder.path() / "test_batch", replaced(good, "K\6K\x09", "K\6K\x0a"));
  EXPECT_THAT(message_of<FormatError>([&] { load_dataset(folder.path(), Split::test); }),
              HasSubstr("record 1 has label 10; expected 0 to 9"));
  write_bytes(folder.path() / "batches.meta", replaced(fixture("python2.meta"), "ship", "s\nip"));
  EXPECT_THAT(message_of<FormatError>([&] { load_dataset(folder.path(), Split::test); }), HasSubstr("class name"));
}

/// Python 3's bytes in protocol 2 are text that _codecs.encode() would make bytes of.
TEST(Cifar10Python, RefusesTextThatStandsForNoBytes) {
  const Bytes good = fixture("python3_protocol2");
  EXPECT_THAT(pickle_refusal(replaced(good, "latin1", "utf-16")), HasSubstr("no 'labels'"));
  const size_t last = static_cast<size_t>(std::ranges::find(good | std::views::reverse, 0xC3).base() - good.begin());
  for (const uint8_t lead : Bytes{0xC4, 0xC1, 0xE2, 0x80, 0xFF}) {
    Bytes other = good;
    other[last - 1] = lead;
    EXPECT_THAT(pickle_refusal(other), HasSubstr("characters that are none")) << int{lead};
  }
  Bytes other = good;
  other[last] = 'x';
  EXPECT_THAT(pickle_refusal(other), HasSubstr("characters that are none"));
}

TEST(Cifar10Python, NothingIsCalledAndAnArrayIsFilledOnce) {
  for (const std::string& behind_array : {"(K\1K\1K\2\x86N\x89U\1xtb"s, "Nb"s, ")b"s, "cos\nsystem\nU\4true\x85R0"s,
                                          "cbuiltins\neval\nU\0011\x85\x81"
                                          "0"s}) {
    Bytes file = fixture("python2");
    file.insert(std::ranges::search(file,
                                    "U\x09"
                                    "filenames"s)
                    .begin(),
                behind_array.begin(), behind_array.end());
    EXPECT_EQ(records_of_pickle(file, "x"), fixture("binary"));
  }
}

/// Each of 200,000 calls gets the same 262,144 values.
TEST(Cifar10Python, RepeatedCallsCostNothing) {
  std::string file = "\x80\2(" + std::string(1 << 18, 'N') + "tq\1cx\ny\nq\2";
  for (int i = 0; i < 200'000; ++i) file += "h\2h\1R0";
  EXPECT_THAT(pickle_refusal(bytes_of_text(file + ".")), HasSubstr("no 'labels'"));

  // A megabyte that 200,000 calls would each make bytes of.
  std::string bytes = "\x80\2X\0\0\x10\0"s + std::string(1 << 20, 'x') + "X\6\0\0\0latin1\x86q\1c_codecs\nencode\nq\2"s;
  for (int i = 0; i < 200'000; ++i) bytes += "h\2h\1R0";
  EXPECT_THAT(pickle_refusal(bytes_of_text(bytes + ".")), HasSubstr("no 'labels'"));
}

}  // namespace
}  // namespace nibblenet
