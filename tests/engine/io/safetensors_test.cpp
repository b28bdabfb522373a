#include "engine/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <fstream>
#include <numeric>
#include <thread>

#include "engine/io/file_content.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::golden_folder;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::TemporaryFolder;

std::string text_of_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::remove(
      path);  // ext4 flushes a file that is cut to nothing and written again: thousands of times here
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// A file with this JSON and so many bytes of data behind it.
std::string file_with(std::string_view json, size_t data_bytes) {
  const uint64_t length = json.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes.append(json).append(data_bytes, 'x');
}

std::string tensor_json(std::string_view name, std::string_view dtype, std::string_view shape,
                        std::string_view offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape, offsets);
}

template <class E, class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    return fmt::format("another exception: {}", error.what());
  }
  return "no exception";
}

/// Names of everything in a folder: nothing may be left behind.
std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  std::filesystem::path path(std::string_view name = "file.safetensors") const { return folder_.path() / name; }

  /// Opens these bytes as a file and reads all that can be read. A file that opens must keep its
  /// own promises.
  void open_and_use(std::string_view bytes) const {
    write_file(path(), bytes);
    const SafetensorsFile file(path());
    int64_t total = file.header_bytes();
    for (const TensorEntry& entry : file.tensors()) {
      ASSERT_EQ(file.find(entry.name), &entry);
      const int64_t elements =
          std::accumulate(entry.sizes.begin(), entry.sizes.end(), int64_t{1}, std::multiplies<int64_t>());
      ASSERT_EQ(static_cast<size_t>(elements) * size_of(entry.dtype), entry.bytes.size());
      total += static_cast<int64_t>(entry.bytes.size());
      try {
        read_float(file, entry, host_memory(), MemoryCategory::data);
      } catch (const FormatError&) {  // no float type, or too many dimensions
      }
    }
    ASSERT_EQ(total, file.file_bytes());
    file.verify();
  }

  /// A small valid file: two tensors, metadata and checksums.
  std::string small_file() const {
    const std::vector<float> weights = {1.5F, -2.0F, 0.0F};
    const std::vector<uint8_t> codes = {1, 2, 3, 4, 5};
    write_safetensors(path("small"),
                      {{"w", DType::f32, {3, 1}, bytes_of(std::span(weights))}, {"c", DType::u8, {5}, codes}},
                      {{"format", "pt"}});
    return text_of_file(path("small"));
  }

  TemporaryFolder folder_;
};

TEST_F(SafetensorsTest, EveryTypeReturnsAsItWasWritten) {
  std::vector<uint8_t> bytes(48);
  std::iota(bytes.begin(), bytes.end(), uint8_t{1});
  for (int i = 0; i <= static_cast<int>(DType::f64); ++i) {
    const auto dtype = static_cast<DType>(i);
    const auto elements = static_cast<int64_t>(bytes.size() / size_of(dtype));
    for (const std::vector<int64_t>& sizes :
         {std::vector<int64_t>{elements}, {2, elements / 2}, {1, 2, 1, elements / 2, 1}}) {
      write_safetensors(path(), {{"t", dtype, sizes, bytes}}, {});
      const SafetensorsFile file(path());
      const TensorEntry& entry = file.at("t");
      EXPECT_EQ(entry.dtype, dtype);
      EXPECT_EQ(entry.sizes, sizes);
      EXPECT_TRUE(std::ranges::equal(entry.bytes, bytes)) << to_string(dtype);
      EXPECT_EQ(file.verify(), 1);
    }
  }
}

TEST_F(SafetensorsTest, ScalarsAndEmptyTensorsAndEmptyFiles) {
  const float scalar = 2.5F;
  write_safetensors(path(),
                    {{"empty", DType::f32, {3, 0, 2}, {}},
                     {"scalar", DType::f32, {}, bytes_of(std::span(&scalar, 1))},
                     {"last", DType::f32, {0}, {}}},
                    {});
  const SafetensorsFile file(path());
  EXPECT_EQ(read_float(file, file.at("scalar"), host_memory(), MemoryCategory::data).view()[0], 2.5F);
  EXPECT_EQ(read_float(file, file.at("empty"), host_memory(), MemoryCategory::data).shape(), (Shape{3, 0, 2}));
  EXPECT_EQ(file.verify(), 3);

  write_safetensors(path(), {}, {});
  EXPECT_TRUE(SafetensorsFile(path()).tensors().empty());
}

TEST_F(SafetensorsTest, NamesAndMetadataKeepEveryCharacter) {
  const std::string odd = "a\"b\\c\nd\te\x01/ü漢😀.weight";
  const uint8_t byte = 7;
  write_safetensors(path(), {{odd, DType::u8, {1}, {&byte, 1}}, {"", DType::u8, {1}, {&byte, 1}}},
                    {{odd, odd}, {"", ""}});
  const SafetensorsFile file(path());
  EXPECT_NE(file.find(odd), nullptr);
  EXPECT_NE(file.find(""), nullptr);
  EXPECT_EQ(file.metadata().at(odd), odd);
  EXPECT_EQ(file.verify(), 2);
}

TEST_F(SafetensorsTest, DataIsAlignedForItsElements) {
  const std::vector<uint8_t> bytes(24);
  for (size_t name_length = 1; name_length < 10; ++name_length) {
    write_safetensors(path(),
                      {{std::string(name_length, 'n'), DType::u8, {3}, std::span(bytes).first(3)},
                       {"half", DType::f16, {3}, std::span(bytes).first(6)},
                       {"double", DType::f64, {1}, std::span(bytes).first(8)},
                       {"float", DType::f32, {3}, std::span(bytes).first(12)},
                       {"later", DType::f32, {1}, std::span(bytes).first(4)}},
                      {});
    const SafetensorsFile file(path());
    EXPECT_EQ(file.header_bytes() % 8, 0);
    std::vector<std::string> order;
    for (const TensorEntry& entry : file.tensors()) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(entry.bytes.data()) % size_of(entry.dtype), 0U) << entry.name;
      order.push_back(entry.name);
    }
    EXPECT_THAT(order, ElementsAre("double", "float", "later", "half", std::string(name_length, 'n')));
  }
}

TEST_F(SafetensorsTest, ReadsFloatsOfEveryWidthAtAnyAddress) {
  struct Case {
    std::string dtype;
    std::string bytes;
  };
  const double wide[] = {1.5, -0.25};
  const float single[] = {1.5F, -0.25F};
  for (const Case& c :
       {Case{"F64", {reinterpret_cast<const char*>(wide), sizeof wide}},
        Case{"F32", {reinterpret_cast<const char*>(single), sizeof single}},
        Case{"F16", std::string("\x00\x3E\x00\xB4", 4)}, Case{"BF16", std::string("\xC0\x3F\x80\xBE", 4)}}) {
    // The byte in front makes every element start on an odd address.
    const std::string json = fmt::format("{{{},{}}}", tensor_json("pad", "U8", "[1]", "[0,1]"),
                                         tensor_json("t", c.dtype, "[1,2]", fmt::format("[1,{}]", 1 + c.bytes.size())));
    for (size_t shift = 0; shift < 8; ++shift) {
      write_file(path(), file_with(json + std::string(shift, ' '), 1) + c.bytes);
      const SafetensorsFile file(path());
      const Tensor<float> tensor = read_float(file, file.at("t"), host_memory(), MemoryCategory::data);
      EXPECT_EQ(tensor.shape(), (Shape{1, 2}));
      EXPECT_THAT(tensor.view().span(), ElementsAre(1.5F, -0.25F)) << c.dtype;
    }
  }
}

TEST_F(SafetensorsTest, ReadFloatNamesWhatItCannotRead) {
  const std::vector<uint8_t> bytes(4);
  write_safetensors(path(), {{"whole", DType::i32, {1}, bytes}, {"deep", DType::f32, {1, 1, 1, 1, 1}, bytes}}, {});
  const SafetensorsFile file(path());
  const auto read = [&](std::string_view name) {
    return message_of<FormatError>([&] { read_float(file, file.at(name), host_memory(), MemoryCategory::data); });
  };
  EXPECT_THAT(read("whole"), AllOf(HasSubstr("'whole'"), HasSubstr("I32"), HasSubstr("BF16")));
  EXPECT_THAT(read("deep"), HasSubstr("5 dimensions"));
  EXPECT_THAT(read("absent"), AllOf(HasSubstr("'absent'"), HasSubstr(path().string())));
}

TEST_F(SafetensorsTest, OpensTheGoldenFiles) {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(golden_folder())) {
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile file(entry.path());
    EXPECT_FALSE(file.tensors().empty()) << entry.path();
    EXPECT_EQ(file.verify(), 0) << "written by PyTorch, without checksums";
    ++files;
  }
  EXPECT_GE(files, 3);
}

TEST_F(SafetensorsTest, TensorsComeInTheOrderOfTheDataWhateverTheHeaderSays) {
  write_file(path(),
             file_with(fmt::format("{{{},{},{}}}", tensor_json("c", "U8", "[2]", "[4,6]"),
                                   tensor_json("a", "U8", "[4]", "[0,4]"), tensor_json("b", "U8", "[0]", "[4,4]")),
                       6));
  const SafetensorsFile file(path());
  ASSERT_EQ(file.tensors().size(), 3U);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.tensors()[1].name, "b");
  EXPECT_EQ(file.tensors()[2].name, "c");
}

TEST_F(SafetensorsTest, RefusesEveryBrokenHeader) {
  struct Case {
    std::string json;
    size_t data_bytes;
    std::string reason;
  };
  const auto one = [](std::string_view dtype, std::string_view shape, std::string_view offsets) {
    return fmt::format("{{{}}}", tensor_json("t", dtype, shape, offsets));
  };
  const std::string good = tensor_json("t", "U8", "[4]", "[0,4]");
  const std::vector<Case> cases = {
      {"", 4, "begin with"},
      {" {}", 0, "begin with"},
      {"\xEF\xBB\xBF{}", 0, "begin with"},
      {"[]", 0, "begin with"},
      {"{", 0, "JSON"},
      {"{}}", 0, "JSON"},
      {"{} {}", 0, "JSON"},
      {std::string("{}\0hidden", 9), 0, "JSON"},
      {"{/*comment*/}", 0, "JSON"},
      {"{\"a\xFF\":1}", 0, "JSON"},
      {"{\"t\":" + std::string(200000, '['), 0, "a list"},
      {"{\"t\":" + std::string(200000, '{'), 0, "JSON"},
      {R"({"__metadata__":{"a":)" + std::string(200000, '['), 0, "a list"},
      {R"({"t":1})", 0, "number 1"},
      {R"({"t":null})", 0, "null"},
      {R"({"t":true})", 0, "true or false"},
      {R"({"t":"text"})", 0, "a text"},
      {R"({"t":[]})", 0, "a list"},
      {R"({"t":{}})", 0, "lacks"},
      {R"({"t":{"dtype":"U8","shape":[4]}})", 4, "lacks"},
      {R"({"t":{"dtype":"U8","data_offsets":[0,4]}})", 4, "lacks"},
      {R"({"t":{"shape":[4],"data_offsets":[0,4]}})", 4, "lacks"},
      {R"({"t":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4, "two fields"},
      {R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"more":1}})", 4, "unknown field"},
      {R"({"t":{"dtype":8,"shape":[4],"data_offsets":[0,4]}})", 4, "number 8"},
      {R"({"t":{"dtype":["U8"],"shape":[4],"data_offsets":[0,4]}})", 4, "a list"},
      {R"({"t":{"dtype":{"a":1},"shape":[4],"data_offsets":[0,4]}})", 4, "an object"},
      {"{" + good + "," + good + "}", 4, "twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "twice"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "twice"},
      {R"({"__metadata__":{"a":1}})", 0, "texts only"},
      {R"({"__metadata__":{"a":null}})", 0, "texts only"},
      {R"({"__metadata__":{"a":{}}})", 0, "texts only"},
      {R"({"__metadata__":{"a":["b"]}})", 0, "texts only"},
      {R"({"__metadata__":"text"})", 0, "a text"},
      {R"({"__metadata__":null})", 0, "null"},
      {one("F8_E4M3", "[4]", "[0,4]"), 4, "supported are BOOL, U8"},
      {one("u8", "[4]", "[0,4]"), 4, "supported are"},
      {one("", "[4]", "[0,4]"), 4, "supported are"},
      {one("U8", "4", "[0,4]"), 4, "number 4"},
      {one("U8", "[[4]]", "[0,4]"), 4, "a list"},
      {one("U8", "[-4]", "[0,4]"), 4, "negative"},
      {one("U8", "[4.0]", "[0,4]"), 4, "64-bit integer"},
      {one("U8", "[4e0]", "[0,4]"), 4, "64-bit integer"},
      {one("U8", "[\"4\"]", "[0,4]"), 4, "a text"},
      {one("U8", "[null]", "[0,4]"), 4, "null"},
      {one("U8", "[true]", "[0,4]"), 4, "true or false"},
      {one("U8", "[4]", "[0]"), 4, "1 data_offsets"},
      {one("U8", "[4]", "[]"), 4, "0 data_offsets"},
      {one("U8", "[4]", "[0,4,4]"), 4, "number 4"},
      {one("U8", "[4]", "[-0,4]"), 4, "negative"},
      {one("U8", "[4]", "[-4,0]"), 4, "negative"},
      {one("U8", "[4]", "[0.0,4]"), 4, "64-bit integer"},
      {one("U8", "[4]", "[0,4]"), 3, "3 bytes of data"},
      {one("U8", "[4]", "[0,4]"), 5, "belong to no tensor"},
      {one("U8", "[4]", "[1,5]"), 5, "belong to no tensor"},
      {one("U8", "[4]", "[4,0]"), 4, "lies at"},
      {one("U8", "[3]", "[0,4]"), 4, "needs 3 bytes"},
      {one("F32", "[4]", "[0,4]"), 4, "needs 16 bytes"},
      {one("F32", "[0]", "[0,4]"), 4, "needs 0 bytes"},
      {one("U8", "[4]", "[9223372036854775807,9223372036854775807]"), 4, "lies at"},
      {one("U8", "[4]", "[0,18446744073709551615]"), 4, "18446744073709551615"},
      {one("U8", "[4]", "[0,18446744073709551620]"), 4, "64-bit integer"},
      {one("U8", "[18446744073709551620]", "[0,4]"), 4, "64-bit integer"},
      {one("U8", "[9223372036854775808]", "[0,4]"), 4, "number 9223372036854775808"},
      // Products that wrap around to 4 or 0 in 64 bits.
      {one("F32", "[4611686018427387905]", "[0,4]"), 4, "too large"},
      {one("U8", "[4294967296,4294967296]", "[0,0]"), 0, "too large"},
      {one("U8", "[4294967296,4294967296,0]", "[0,0]"), 0, "too large"},
      {one("U8", "[4611686018427387905,0]", "[0,0]"), 0, "too large"},
      {"{" + good + "," + tensor_json("u", "U8", "[4]", "[2,6]") + "}", 6, "overlaps"},
      {"{" + good + "," + tensor_json("u", "U8", "[4]", "[0,4]") + "}", 4, "overlaps"},
      {"{" + good + "," + tensor_json("u", "U8", "[4]", "[5,9]") + "}", 9, "belong to no tensor"},
      {"{" + good + "," + tensor_json("u", "U8", "[0]", "[2,2]") + "}", 4, "overlaps"},
  };
  for (const Case& c : cases) {
    const std::string message = message_of<FormatError>([&] { open_and_use(file_with(c.json, c.data_bytes)); });
    EXPECT_THAT(message, AllOf(HasSubstr(path().string()), HasSubstr(c.reason), Not(HasSubstr("\n"))))
        << c.json.substr(0, 200);
  }
  EXPECT_NO_THROW(open_and_use(file_with("{" + good + "}", 4))) << "the cases differ from this one";
}

TEST_F(SafetensorsTest, RefusesImpossibleHeaderLengths) {
  for (const uint64_t length :
       {uint64_t{3}, uint64_t{100'000'000}, uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{7}}) {
    std::string bytes = file_with("{}", 0);
    std::memcpy(bytes.data(), &length, sizeof length);
    EXPECT_THAT(message_of<FormatError>([&] { open_and_use(bytes); }), HasSubstr(fmt::format("{} bytes", length)));
  }
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string whole = small_file();
  EXPECT_NO_THROW(open_and_use(whole));
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_THROW(open_and_use(std::string_view(whole).substr(0, length)), FormatError) << length;
  EXPECT_THROW(open_and_use(whole + "x"), FormatError);
}

TEST_F(SafetensorsTest, EveryFlippedBitIsRefusedOrHarmless) {
  const std::string whole = small_file();
  size_t refused = 0;
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    // Anything but a FormatError fails the test: names and metadata may change, the layout stays
    // sound.
    try {
      open_and_use(bytes);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, whole.size() * 4) << "most bits matter";
}

TEST_F(SafetensorsTest, EveryByteReplacedIsRefusedOrHarmless) {
  const std::string whole = small_file();
  for (size_t place = 0; place < whole.size(); ++place) {
    for (const char replacement : {'\0', '0', '9', '-', '.', 'e', '"', '{', '}', '[', ']', ',', ':', '\\', '\xFF'}) {
      std::string bytes = whole;
      bytes[place] = replacement;
      try {
        open_and_use(bytes);
      } catch (const FormatError&) {
      }
    }
  }
}

TEST_F(SafetensorsTest, VerifyFindsEveryFlippedDataByte) {
  const std::string whole = small_file();
  write_file(path(), whole);
  const auto header_bytes = static_cast<size_t>(SafetensorsFile(path()).header_bytes());
  for (size_t place = header_bytes; place < whole.size(); ++place) {
    std::string bytes = whole;
    bytes[place] = static_cast<char>(bytes[place] ^ 1);
    write_file(path(), bytes);
    const SafetensorsFile file(path());
    EXPECT_THAT(message_of<FormatError>([&] { file.verify(); }),
                AllOf(HasSubstr("checksum"), HasSubstr(place < header_bytes + 12 ? "'w'" : "'c'")));
  }
}

TEST_F(SafetensorsTest, VerifyFindsChecksumsOfAbsentTensors) {
  write_file(path(), file_with(R"({"__metadata__":{"xxh3:gone":"0123456789abcdef"}})", 0));
  EXPECT_THAT(message_of<FormatError>([&] { SafetensorsFile(path()).verify(); }), HasSubstr("'gone'"));
}

TEST_F(SafetensorsTest, ChecksumsOfAnotherFileAreNotCarriedOver) {
  const uint8_t byte = 1;
  write_safetensors(path(), {{"t", DType::u8, {1}, {&byte, 1}}}, {{"xxh3:t", "stale"}, {"xxh3:gone", "stale"}});
  const SafetensorsFile file(path());
  EXPECT_EQ(file.verify(), 1);
  EXPECT_FALSE(file.metadata().contains("xxh3:gone"));
}

/// A file as this program writes it, with its JSON changed by hand.
TEST_F(SafetensorsTest, ChecksumsAndKeysThatAreDemandedOrDamaged) {
  const std::string tensor = tensor_json("t", "U8", "[0]", "[0,0]");
  const auto opened = [&](const std::string& metadata) {
    write_file(path(), file_with("{\"__metadata__\":{" + metadata + "}," + tensor + "}", 0));
    return message_of<FormatError>([&] { SafetensorsFile(path()).verify(); });
  };
  const std::string none = "no exception", sum = R"("xxh3:t":"2d06800538d394c2")";
  const std::string packed = R"("format":"nibblenet-packed")";
  EXPECT_EQ(opened(R"("format":"pt")"), none);
  EXPECT_EQ(opened(R"("format":"pt","format_version":"4","shape":"any","clases":"any")"), none) << "another's";
  EXPECT_EQ(opened(packed + R"(,"format_version":"1")"), none) << "older, without checksums";
  EXPECT_EQ(opened(packed + R"(,"format_version":"1",)" + sum), none) << "older, with checksums";
  EXPECT_EQ(opened(sum), none) << "older float files name no format";
  EXPECT_THAT(opened(packed + R"(,"format_version":"4",)" + sum), HasSubstr("its header has no checksum"));
  EXPECT_THAT(opened(R"("format":"nibblenet-float","format_version":"4")"), HasSubstr("its header has no checksum"));
  EXPECT_THAT(opened(sum + R"(,"header_xxh3":"0123456789abcdef")"), HasSubstr("written again by another program"));
  EXPECT_THAT(opened(R"("header_xxh3":"0123456789abcdef",)" + sum), HasSubstr("checksum of its header"));
  for (const char* damaged : {"clases", "classesx", "Classes", "formau", "image_sizf", "header_xxh2", "xxh2:t",
                              "xxh3;t", "xh3:t", "scheme", "chape:t", "shapes:t", "compressio:t", "training_positiom"})
    EXPECT_THAT(opened(fmt::format(R"({},"{}":"any")", sum, damaged)),
                AllOf(HasSubstr("looks like a damaged"), HasSubstr(damaged)));

  const std::string two = tensor + "," + tensor_json("u", "U8", "[0]", "[0,0]");
  write_file(path(), file_with("{\"__metadata__\":{" + packed + "," + sum + "}," + two + "}", 0));
  EXPECT_THAT(message_of<FormatError>([&] { SafetensorsFile(path()).verify(); }), HasSubstr("'u' has no checksum"));
}

TEST_F(SafetensorsTest, ChecksumIsXxh3InSixteenDigits) {
  write_safetensors(path(), {{"t", DType::u8, {0}, {}}}, {});
  // XXH3_64bits of nothing, as its specification prints it.
  EXPECT_EQ(SafetensorsFile(path()).metadata().at("xxh3:t"), "2d06800538d394c2");
}

TEST_F(SafetensorsTest, OpeningSaysWhatIsWrongWithThePath) {
  const auto open = [&](const std::filesystem::path& file) {
    return message_of<IoError>([&] { SafetensorsFile{file}; });
  };
  EXPECT_THAT(open(path("absent")), AllOf(HasSubstr("absent"), HasSubstr("No such file")));
  EXPECT_THAT(open(folder_.path()), HasSubstr("folder"));
  EXPECT_THAT(open("/dev/null"), HasSubstr("no ordinary file"));
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_THAT(open(path("pipe")), HasSubstr("no ordinary file"));
  write_file(path("empty"), "");
  EXPECT_THAT(message_of<FormatError>([&] { SafetensorsFile{path("empty")}; }), HasSubstr("0 bytes"));
}

/// The bytes of an open file are a copy: a mapping would raise SIGBUS, or change.
TEST_F(SafetensorsTest, AnOpenFileOutlivesBeingCutAndOverwritten) {
  write_file(path(), small_file());
  const SafetensorsFile file(path());
  std::fstream(path(), std::ios::in | std::ios::out | std::ios::binary).seekp(-3, std::ios::end) << "xxx";
  EXPECT_EQ(file.verify(), 2);
  std::filesystem::resize_file(path(), 10);
  EXPECT_EQ(file.verify(), 2);
  std::filesystem::resize_file(path(), 0);
  EXPECT_EQ(file.verify(), 2);
}

TEST_F(SafetensorsTest, AFileCutShortWhileItIsReadIsNamed) {
  write_file(path(), std::string(10'000, 'x'));
  const InputFile file(path());
  EXPECT_EQ(file.read(9'990, 10).bytes().size(), 10U);
  std::filesystem::resize_file(path(), 9'999);
  EXPECT_THAT(message_of<IoError>([&] { file.read_all(); }),
              AllOf(HasSubstr(path().string()), HasSubstr("cut short to 9999 of 10000 bytes")));
  EXPECT_THAT(message_of<IoError>([&] { file.read(0, uint64_t{1} << 60); }), HasSubstr("no memory"));
}

/// Another process cuts a file, again and again, while this one opens it.
TEST_F(SafetensorsTest, CuttingAFileWhileItIsOpenedIsNeverACrash) {
  const std::vector<uint8_t> bytes(4 << 20);
  write_safetensors(path(), {{"t", DType::u8, {static_cast<int64_t>(bytes.size())}, bytes}}, {});
  const auto whole = std::filesystem::file_size(path());
  std::atomic<bool> done = false;
  std::thread cutter([&] {
    for (uintmax_t size = whole; !done; size = size == whole ? whole / 3 : whole)
      std::filesystem::resize_file(path(), size);
  });
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    try {
      SafetensorsFile(path()).at("t");
    } catch (const Error&) {  // cut in the middle, or cut before
      ++refused;
    }
  }
  done = true;
  cutter.join();
  EXPECT_GT(refused, 0);
}

/// A header is small, so a file of this kind costs its maker nothing.
TEST_F(SafetensorsTest, AHeaderOfAMillionTensorsIsRefused) {
  const auto tensors = [](int count) {
    std::string json = "{";
    for (int i = 0; i < count; ++i)
      json += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i == 0 ? "" : ",", i);
    return file_with(json + "}", 0);
  };
  write_file(path(), tensors(131'072));
  EXPECT_EQ(SafetensorsFile(path()).tensors().size(), 131'072U);
  write_file(path(), tensors(131'073));
  EXPECT_THAT(message_of<FormatError>([&] { SafetensorsFile{path()}; }), HasSubstr("more than 131072 tensors"));
  std::string keys = R"({"__metadata__":{"k":"")";
  for (int i = 0; i < 600'000; ++i) keys += fmt::format(R"(,"{}":"")", i);
  write_file(path(), file_with(keys + "}}", 0));
  EXPECT_THAT(message_of<FormatError>([&] { SafetensorsFile{path()}; }), HasSubstr("metadata keys"));
  std::string shape = "1";
  for (int i = 0; i < 64; ++i) shape += ",1";
  write_file(path(), file_with("{" + tensor_json("t", "U8", "[" + shape + "]", "[0,1]") + "}", 1));
  EXPECT_THAT(message_of<FormatError>([&] { SafetensorsFile{path()}; }), HasSubstr("more than 64 dimensions"));
}

TEST_F(SafetensorsTest, MetadataIsReadWithoutTheData) {
  const std::string whole = small_file();
  write_file(path(), whole);
  EXPECT_EQ(safetensors_metadata(path()), SafetensorsFile(path()).metadata());
  write_file(path(), whole.substr(0, whole.size() - 1));
  EXPECT_THAT(message_of<FormatError>([&] { safetensors_metadata(path()); }), HasSubstr("bytes of data"));
}

TEST_F(SafetensorsTest, AnOpenFileOutlivesItsReplacement) {
  write_file(path(), small_file());
  const SafetensorsFile old(path());
  const uint8_t byte = 1;
  write_safetensors(path(), {{"t", DType::u8, {1}, {&byte, 1}}}, {});
  EXPECT_EQ(old.verify(), 2);
  EXPECT_EQ(SafetensorsFile(path()).tensors().size(), 1U);
}

TEST_F(SafetensorsTest, RefusesToWriteWhatItCouldNotRead) {
  const std::vector<uint8_t> bytes(4);
  const auto write = [&](std::vector<TensorToWrite> tensors, const std::map<std::string, std::string>& metadata = {}) {
    write_safetensors(path(), tensors, metadata);
  };
  EXPECT_THROW(write({{"t", DType::u8, {3}, bytes}}), ShapeError);
  EXPECT_THROW(write({{"t", DType::u8, {-1, -4}, bytes}}), ShapeError);
  EXPECT_THROW(write({{"t", DType::f32, {int64_t{1} << 62}, bytes}}), ShapeError);
  EXPECT_THROW(write({{"t", DType::u8, {4}, bytes}, {"t", DType::u8, {4}, bytes}}), FormatError);
  EXPECT_THROW(write({{"__metadata__", DType::u8, {4}, bytes}}), FormatError);
  EXPECT_THROW(write({{"\xFF", DType::u8, {4}, bytes}}), FormatError);
  EXPECT_THROW(write({}, {{"key", "\xFF"}}), FormatError);
  EXPECT_TRUE(names_in(folder_.path()).empty());
}

TEST_F(SafetensorsTest, WritingSaysWhatIsWrongWithThePath) {
  const auto write = [&](const std::filesystem::path& file) {
    return message_of<IoError>([&] { write_safetensors(file, {}, {}); });
  };
  EXPECT_THAT(write(path("no/such/folder.safetensors")), AllOf(HasSubstr("no/such/folder"), HasSubstr("No such file")));
  EXPECT_THAT(write(folder_.path()), HasSubstr("folder"));
  EXPECT_THAT(write("/dev/full"), HasSubstr("No space left"));
  EXPECT_THAT(write(path(std::string(300, 'n'))), HasSubstr("too long"));
  EXPECT_TRUE(names_in(folder_.path()).empty());
}

TEST_F(SafetensorsTest, WritesThroughLinksAndIntoTheCurrentFolder) {
  std::filesystem::create_directory(path("real"));
  write_file(path("real/file"), "old");
  std::filesystem::create_symlink(path("real/file"), path("link"));
  write_safetensors(path("link"), {}, {});
  EXPECT_TRUE(std::filesystem::is_symlink(path("link")));
  EXPECT_NO_THROW(SafetensorsFile(path("real/file")));

  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder_.path());
  write_safetensors("bare", {}, {});
  std::filesystem::current_path(before);
  EXPECT_NO_THROW(SafetensorsFile(path("bare")));
}

/// Runs `body` in a child process, where limits and the user can be changed; its result is the exit
/// status.
template <class Body>
int in_child(Body&& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

TEST_F(SafetensorsTest, AFullDiskLeavesTheOldFile) {
  const std::string old = small_file();
  write_file(path(), old);
  const std::vector<uint8_t> bytes(100'000);
  // Short writes first, then EFBIG: the limit cuts through the header, into the data, and just
  // before the end.
  for (const rlim_t limit : {rlim_t{0}, rlim_t{10}, rlim_t{5000}, rlim_t{100'000}}) {
    const int status = in_child([&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit size = {limit, limit};
      if (setrlimit(RLIMIT_FSIZE, &size) != 0) return 2;
      const std::string message = message_of<IoError>([&] {
        write_safetensors(path(), {{"t", DType::u8, {100'000}, bytes}}, {});
      });
      return message.find(path().string()) != std::string::npos && message.find("too large") != std::string::npos ? 0
                                                                                                                  : 1;
    });
    EXPECT_EQ(status, 0) << limit;
    EXPECT_EQ(text_of_file(path()), old);
    EXPECT_THAT(names_in(folder_.path()), ElementsAre("file.safetensors", "small"));
  }
}

TEST_F(SafetensorsTest, AnUnwritableFolderIsReported) {
  const std::filesystem::path folder = path("locked");
  std::filesystem::create_directory(folder);
  std::filesystem::permissions(folder, std::filesystem::perms{0555});
  std::filesystem::permissions(folder_.path(), std::filesystem::perms{0755});
  const int status = in_child([&] {
    if (geteuid() == 0 && setuid(65534) != 0) return 2;  // root may write anywhere
    const std::string message = message_of<IoError>([&] { write_safetensors(folder / "file", {}, {}); });
    return message.find("Permission denied") != std::string::npos && message.find("locked/file") != std::string::npos
               ? 0
               : 1;
  });
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(names_in(folder).empty());
}

TEST_F(SafetensorsTest, WritersOfOneNameDoNotMix) {
  // Whoever renames last wins; a reader sees one writer's file, whole, at any time.
  const auto write = [&](uint8_t value) {
    const std::vector<uint8_t> bytes(5000, value);
    for (int i = 0; i < 10; ++i) write_safetensors(path(), {{"t", DType::u8, {5000}, bytes}}, {});
  };
  write(0);
  {
    std::vector<std::jthread> writers;
    for (uint8_t value = 1; value <= 4; ++value) writers.emplace_back(write, value);
    for (int i = 0; i < 100; ++i) EXPECT_EQ(SafetensorsFile(path()).verify(), 1);
  }
  EXPECT_THAT(names_in(folder_.path()), ElementsAre("file.safetensors"));
}

}  // namespace
}  // namespace nibblenet
