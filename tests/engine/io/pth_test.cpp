#include "engine/io/pth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>

#include "engine/io/posix_file.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/engine/io/pth_helpers.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using namespace testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PthTest : public ::testing::Test {
 protected:
  std::filesystem::path path() const { return folder_.path() / "model"; }
  /// A file in memory: thousands of them on a disk take minutes.
  std::string in_memory(const std::string& content) const {
    if (ftruncate(memory_.get(), 0) != 0 ||
        pwrite(memory_.get(), content.data(), content.size(), 0) != static_cast<ssize_t>(content.size()))
      fail<IoError>("cannot write a file in memory");
    return fmt::format("/proc/self/fd/{}", memory_.get());
  }
  PthFile open(const std::string& content) const { return PthFile(in_memory(content)); }
  std::vector<float> read(const PthFile& file, std::string_view name) const {
    const Tensor<float> tensor =
        read_float(file, testing::tensor_named(file, name), host_memory(), MemoryCategory::data);
    return {tensor.view().begin(), tensor.view().end()};
  }
  /// Every tensor, as a tool reads them.
  void open_and_use(const std::string& content) const {
    const PthFile file = open(content);
    for (const PthTensor& tensor : file.tensors()) read_float(file, tensor, host_memory(), MemoryCategory::data);
  }
  std::string refusal(const std::string& content) const {
    const std::string message = message_of<FormatError>([&] { open_and_use(content); });
    EXPECT_THAT(message, HasSubstr("/proc/self/fd/"));
    EXPECT_EQ(message.find('\n'), message.npos) << message;
    return message;
  }

  TemporaryFolder folder_;
  FileDescriptor memory_{memfd_create("model", MFD_CLOEXEC)};
};

/// A file that PyTorch wrote, and one with the same values.
struct GoldenFile {
  std::string name;
  std::string values;
};
void PrintTo(const GoldenFile& file, std::ostream* out) { *out << file.name; }

class PthGolden : public ::testing::TestWithParam<GoldenFile> {};

std::string content_of(const std::filesystem::path& path) {
  const Bytes bytes = read_bytes(path);
  return {bytes.begin(), bytes.end()};
}

TEST_P(PthGolden, HoldsTheValuesBesideIt) {
  const PthFile file(golden_folder() / "pth" / GetParam().name);
  const SafetensorsFile values(golden_folder() / "pth" / GetParam().values);
  ASSERT_EQ(file.tensors().size(), values.tensors().size());
  for (const TensorEntry& expected : values.tensors()) {
    SCOPED_TRACE(expected.name);
    const PthTensor& tensor = testing::tensor_named(file, expected.name);
    // The values' own file has scalars as tensors of one element, and bfloat16 as float32.
    if (!tensor.sizes.empty()) {
      EXPECT_EQ(tensor.sizes, expected.sizes);
    }
    std::vector<uint8_t> scratch;
    const auto bytes = file.bytes_of(tensor, scratch);
    if (tensor.element->dtype == expected.dtype) {
      EXPECT_TRUE(std::ranges::equal(bytes, expected.bytes));
    } else {
      EXPECT_EQ(tensor.element->name, "bfloat16");
      const Tensor<float> floats = read_float(file, tensor, host_memory(), MemoryCategory::data);
      EXPECT_TRUE(std::ranges::equal(bytes_of(floats.view().span()), expected.bytes));
    }
  }
  EXPECT_EQ(file.verify() > 0, GetParam().name.ends_with("_zip.pth"));
}

INSTANTIATE_TEST_SUITE_P(Files, PthGolden,
                         ::testing::Values(GoldenFile{"state_dict_zip.pth", "state_dict_values.safetensors"},
                                           GoldenFile{"state_dict_legacy.pth", "state_dict_values.safetensors"},
                                           GoldenFile{"module_zip.pth", "module_values.safetensors"},
                                           GoldenFile{"module_legacy.pth", "module_values.safetensors"},
                                           GoldenFile{"checkpoint_zip.pth", "module_values.safetensors"}),
                         [](const auto& test) { return test.param.name.substr(0, test.param.name.find('.')); });

TEST_F(PthTest, EveryTruncationIsRefused) {
  for (const char* name : {"module_zip.pth", "module_legacy.pth"}) {
    const std::string whole = content_of(golden_folder() / "pth" / name);
    EXPECT_NO_THROW(open_and_use(whole));
    for (size_t length = 0; length < whole.size(); ++length)
      EXPECT_THROW(open_and_use(whole.substr(0, length)), FormatError) << name << " cut to " << length;
    EXPECT_THROW(open_and_use(whole + "x"), FormatError) << name;
  }
}

TEST_F(PthTest, EveryChangedByteIsRefusedOrHarmlessAndTheChecksumsFindIt) {
  for (const char* name : {"module_zip.pth", "module_legacy.pth"}) {
    const std::string whole = content_of(golden_folder() / "pth" / name);
    for (size_t i = 0; i < whole.size(); ++i)
      for (const char flip : {'\x01', '\x80', '\xFF'}) {
        std::string changed = whole;
        changed[i] = static_cast<char>(changed[i] ^ flip);
        try {
          open_and_use(changed);  // anything but a FormatError fails the test
        } catch (const FormatError&) {
        }
      }
  }
  const std::string whole = zip_file(two_floats(), {floats({1, 2})});
  const size_t data = whole.find(floats({1, 2}));
  for (size_t i = data; i < data + 8; ++i) {
    std::string changed = whole;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    const PthFile file = open(changed);
    EXPECT_THAT(message_of<FormatError>([&] { file.verify(); }), HasSubstr("m/data/0"));
  }
}

TEST_F(PthTest, ChecksumsThatWereNotComputedAreNotMissed) {
  std::vector<ZipPart> parts = zip_parts(two_floats(), {floats({1, 2})});
  EXPECT_EQ(open(zip_of(parts)).verify(), 3);
  for (ZipPart& part : parts) part.crc = 0;
  EXPECT_EQ(open(zip_of(parts)).verify(), 0);
}

TEST_F(PthTest, ZipArchivesOfEveryKind) {
  const auto parts = zip_parts(two_floats(), {floats({1, 2})});
  for (const Zip64 zip64 : {Zip64::none, Zip64::end_record, Zip64::everywhere})
    for (const std::string& comment : {std::string(), std::string("PK\x05\x06 a comment"), std::string(0xFFFF, 'c')}) {
      const PthFile file = open(zip_of(parts, zip64, comment));
      EXPECT_THAT(read(file, "w"), ElementsAre(1.0F, 2.0F));
      EXPECT_EQ(file.verify(), 3);
    }
  std::vector<ZipPart> reversed(parts.rbegin(), parts.rend());
  reversed.push_back({"m/.data/serialization_id", std::string(40, '7')});
  reversed.push_back({"m/.storage_alignment", "64"});
  EXPECT_THAT(read(open(zip_of(reversed)), "w"), ElementsAre(1.0F, 2.0F));
}

TEST_F(PthTest, ZipArchivesThatLieAreRefused) {
  const auto with = [&](const std::function<void(std::vector<ZipPart>&)>& change) {
    std::vector<ZipPart> parts = zip_parts(two_floats(), {floats({1, 2})});
    change(parts);
    return refusal(zip_of(parts));
  };
  const auto added = [&](const ZipPart& part) { return with([&](auto& parts) { parts.push_back(part); }); };
  EXPECT_THAT(added({"m/data/0", floats({3, 4})}), HasSubstr("twice"));
  for (const char* name : {"../x", "m/../../x", "m/..", "/etc/passwd", "m\\x", ""})
    EXPECT_THAT(added({name, "x"}), HasSubstr("is not allowed")) << name;
  EXPECT_THAT(added({"m/a\0b"s, "x"}), HasSubstr("is not allowed"));
  EXPECT_THAT(added({"n/data.pkl", pickle(two_floats())}), HasSubstr("several models"));
  EXPECT_THAT(added({"m/constants.pkl", "x"}), HasSubstr("TorchScript"));
  EXPECT_THAT(added({"m/code/x.py", "x"}), HasSubstr("TorchScript"));
  EXPECT_THAT(added({"m/byteorder", "middle"}), HasSubstr("byteorder"));
  EXPECT_THAT(added({.name = "m/x", .content = "x", .method = 8}), HasSubstr("compressed"));
  EXPECT_THAT(added({.name = "m/x", .content = "x", .flags = 1}), HasSubstr("encrypted"));
  EXPECT_THAT(added({.name = "m/x", .content = "x", .local_name = "m/y"}), HasSubstr("contradict"));
  for (const int64_t size : {int64_t{0}, int64_t{7}, int64_t{9}, int64_t{100'000}, int64_t{0x7FFFFFFF}})
    EXPECT_NE(with([&](auto& parts) { parts[2].size = size; }), "") << size;
  EXPECT_THAT(with([](auto& parts) { parts[2].header = 0x7FFFFFFF; }), HasSubstr("beyond"));
  EXPECT_THAT(with([](auto& parts) { parts[2].header = 1; }), HasSubstr("overlap"));
  EXPECT_NE(with([](auto& parts) { parts[2].header = 200; }), "");
  EXPECT_THAT(with([](auto& parts) { parts.erase(parts.begin()); }), HasSubstr("data.pkl"));
  EXPECT_THAT(with([](auto& parts) { parts.erase(parts.begin() + 1); }), HasSubstr("version"));
  EXPECT_THAT(with([](auto& parts) { parts.pop_back(); }), HasSubstr("no storage '0'"));
  for (const char* version : {"0\n", "11\n", "", "three", "-1"})
    EXPECT_THAT(with([&](auto& parts) { parts[1].content = version; }), HasSubstr("version")) << version;
  EXPECT_THAT(with([](auto& parts) { parts[0].content += "x"; }), HasSubstr("follow the end"));
}

TEST_F(PthTest, LyingEndRecordsAreRefused) {
  for (const Zip64 zip64 : {Zip64::none, Zip64::end_record, Zip64::everywhere}) {
    const std::string whole = zip_of(zip_parts(two_floats(), {floats({1, 2})}), zip64);
    // Every field of the records behind the directory, but the volumes' numbers that are not looked
    // at.
    const size_t records = whole.size() - (zip64 == Zip64::none ? 22 : 98);
    for (size_t i = records; i < whole.size(); ++i)
      for (const char value : {'\x00', '\x7F', '\xFF'}) {
        std::string changed = whole;
        changed[i] = value;
        try {
          open_and_use(changed);
        } catch (const FormatError&) {
        }
      }
  }
}

TEST_F(PthTest, StridesOffsetsAndSharedStorages) {
  std::vector<float> values(24);
  std::iota(values.begin(), values.end(), 0.0F);
  const std::string shared = storage("0", 24);
  const PthFile file = open(zip_file(
      dict(text("all") + tensor(shared, 0, {4, 6}, {6, 1}) + text("transposed") + tensor(shared, 0, {6, 4}, {1, 6}) +
           text("part") + tensor(shared, 7, {2, 3}, {6, 2}) + text("scalar") + tensor(shared, 23, {}, {}) +
           text("same") + tensor(shared, 5, {3}, {0}) + text("none") + tensor(shared, 99, {0, 4}, {4, 1}) +
           text("one") + tensor(shared, 3, {1, 2}, {1000, 1})),
      {floats(values)}));
  EXPECT_EQ(read(file, "all"), values);
  EXPECT_THAT(read(file, "part"), ElementsAre(7, 9, 11, 13, 15, 17));
  EXPECT_THAT(read(file, "scalar"), ElementsAre(23));
  EXPECT_THAT(read(file, "same"), ElementsAre(5, 5, 5));
  EXPECT_THAT(read(file, "none"), ElementsAre());
  EXPECT_THAT(read(file, "one"), ElementsAre(3, 4));
  const std::vector<float> transposed = read(file, "transposed");
  for (size_t i = 0; i < 6; ++i)
    for (size_t j = 0; j < 4; ++j) EXPECT_EQ(transposed[i * 4 + j], values[j * 6 + i]);
  int64_t bytes = 0;
  for (const PthTensor& each : file.tensors()) bytes += each.file_bytes;
  EXPECT_EQ(bytes, 24 * 4) << "a shared storage counts once";
}

TEST_F(PthTest, TensorsBeyondTheirStorageAreRefused) {
  constexpr int64_t huge = std::numeric_limits<int64_t>::max();
  struct Case {
    int64_t offset;
    std::vector<int64_t> sizes, strides;
  };
  const std::vector<Case> cases = {{1, {2}, {1}},
                                   {0, {3}, {1}},
                                   {0, {2}, {2}},
                                   {2, {}, {}},
                                   {-1, {1}, {1}},
                                   {0, {-1}, {1}},
                                   {0, {2}, {-1}},
                                   {1, {2}, {-1}},
                                   {huge, {2}, {1}},
                                   {0, {huge}, {1}},
                                   {0, {2}, {huge}},
                                   {0, {huge, huge}, {0, 0}},
                                   {0, {huge, 0}, {1, 1}},
                                   {0, {3}, {huge}},
                                   {0, {2}, {1, 1}},
                                   {0, {1 << 30}, {0}},
                                   {huge, {}, {}},
                                   {0, {1, 1, 1, 1, 1, 1, 1, 1, 2}, {1}},
                                   {0, {2, 2}, {huge, huge}}};
  for (const Case& c : cases) {
    const std::string object = dict(text("w") + tensor(storage("0", 2), c.offset, c.sizes, c.strides));
    EXPECT_NE(refusal(zip_file(object, {floats({1, 2})})), "") << ::testing::PrintToString(c.sizes);
  }
}

TEST_F(PthTest, StoragesThatContradictThemselvesAreRefused) {
  const auto opened = [&](const std::string& first, const std::string& second) {
    return refusal(zip_file(dict(text("a") + tensor(first, 0, {1}, {1}) + text("b") + tensor(second, 0, {1}, {1})),
                            {floats({1, 2})}));
  };
  EXPECT_THAT(opened(storage("0", 2), storage("0", 1)), HasSubstr("storage '0'"));
  EXPECT_THAT(opened(storage("0", 2), storage("0", 2, "HalfStorage")), HasSubstr("storage '0'"));
  EXPECT_THAT(opened(storage("0", 2), storage("1", 2)), HasSubstr("storage '1'"));
  EXPECT_THAT(opened(storage("0", 3), storage("0", 3)), HasSubstr("should have 12 bytes"));
  EXPECT_THAT(opened(storage("0", std::numeric_limits<int64_t>::max()), storage("0", 2)), HasSubstr("too large"));
  EXPECT_THAT(opened(storage("0", -2), storage("0", 2)), HasSubstr("number of 0 or more"));
  EXPECT_THAT(opened(storage("0", 2, "MagicStorage"), storage("0", 2)), HasSubstr("torch.MagicStorage"));
}

TEST_F(PthTest, EveryElementType) {
  const auto number = [](auto value) { return little_endian(value); };
  struct Case {
    const char* type;
    std::string bytes;
    float value;
  };
  const std::vector<Case> cases = {{"FloatStorage", number(1.5F), 1.5F},
                                   {"DoubleStorage", number(-2.25), -2.25F},
                                   {"HalfStorage", number(uint16_t{0x3E00}), 1.5F},
                                   {"BFloat16Storage", number(uint16_t{0x3FC0}), 1.5F},
                                   {"LongStorage", number(int64_t{-3}), -3.0F},
                                   {"IntStorage", number(int32_t{1 << 24}), 16777216.0F},
                                   {"ShortStorage", number(int16_t{-300}), -300.0F},
                                   {"CharStorage", number(int8_t{-5}), -5.0F},
                                   {"ByteStorage", number(uint8_t{200}), 200.0F},
                                   {"BoolStorage", number(uint8_t{1}), 1.0F}};
  for (const Case& c : cases)
    for (const bool big_endian : {false, true}) {
      SCOPED_TRACE(c.type);
      std::string bytes = c.bytes;
      if (big_endian) std::ranges::reverse(bytes);
      auto parts = zip_parts(dict(text("t") + tensor(storage("0", 1, c.type), 0, {1}, {1})), {bytes});
      parts.push_back({"m/byteorder", big_endian ? "big" : "little"});
      const PthFile file = open(zip_of(parts));
      EXPECT_THAT(read(file, "t"), ElementsAre(c.value));
    }
  const auto refused = [&](const char* type, const std::string& bytes) {
    return refusal(zip_file(dict(text("t") + tensor(storage("0", 1, type), 0, {1}, {1})), {bytes}));
  };
  EXPECT_THAT(refused("LongStorage", number(int64_t{(1 << 24) + 1})), HasSubstr("int64"));
  EXPECT_THAT(refused("ComplexFloatStorage", floats({1, 2})), HasSubstr("complex64"));
  EXPECT_THAT(refused("QInt8Storage", "x"), HasSubstr("qint8"));
  EXPECT_THAT(refused("UntypedStorage", "x"), HasSubstr("'t'"));
}

TEST_F(PthTest, BigEndianComplexNumbersAreSwappedByHalves) {
  auto parts = zip_parts(dict(text("z") + tensor(storage("0", 1, "ComplexFloatStorage"), 0, {1}, {1})),
                         {"\x3F\xC0\x00\x00\xC0\x10\x00\x00"s});
  parts.push_back({"m/byteorder", "big"});
  const PthFile file = open(zip_of(parts));
  std::vector<uint8_t> scratch;
  const auto bytes = file.bytes_of(testing::tensor_named(file, "z"), scratch);
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), floats({1.5F, -2.25F}));
}

TEST_F(PthTest, TypesOverUntypedStorages) {
  const auto typed = [](int64_t bytes, const std::string& dtype, int64_t size) {
    return call("torch._utils", "_rebuild_tensor_v3",
                tuple(storage("0", bytes, "UntypedStorage") + integer(0) + integers({size}) + integers({1}) + "\x89"s +
                      ordered_dict() + global("torch", dtype)));
  };
  const auto values = [&](const std::string& dtype, int64_t size, const std::string& bytes) {
    return read(open(zip_file(dict(text("t") + typed(static_cast<int64_t>(bytes.size()), dtype, size)), {bytes})), "t");
  };
  EXPECT_THAT(values("uint16", 2, "\x01\x00\xFF\xFF"s), ElementsAre(1, 65535));
  EXPECT_THAT(values("uint64", 1, "\0\0\0\0\0\0\0\x80"s), ElementsAre(9223372036854775808.0F));
  // 1, -448, the smallest subnormal, 0 of E4M3; 1, -57344, Inf of E5M2.
  EXPECT_THAT(values("float8_e4m3fn", 4, "\x38\xFE\x01\x00"s), ElementsAre(1, -448, std::ldexp(1.0F, -9), 0));
  EXPECT_THAT(values("float8_e5m2", 3, "\x3C\xFB\x7C"s), ElementsAre(1, -57344, INFINITY));
  EXPECT_TRUE(std::isnan(values("float8_e4m3fn", 1, "\x7F")[0]));
  EXPECT_THAT(refusal(zip_file(dict(text("t") + typed(3, "uint16", 2)), {"123"})), HasSubstr("beyond"));
  EXPECT_THAT(refusal(zip_file(dict(text("t") + typed(1, "float8_e4m3fnuz", 1)), {"1"})), HasSubstr("float8_e4m3fnuz"));
  EXPECT_THAT(refusal(zip_file(dict(text("t") + typed(1, "strided", 1)), {"1"})), HasSubstr("torch.strided"));
}

TEST_F(PthTest, WrappersAndOtherThings) {
  const std::string weights =
      text("module.a") + tensor(storage("0", 2), 0, {1}, {1}) + text("module.b") + tensor(storage("0", 2), 1, {1}, {1});
  const auto names = [&](const std::string& object) {
    const PthFile file = open(zip_file(object, {floats({1, 2})}));
    std::string all;
    for (const PthTensor& each : file.tensors()) all += each.name + " ";
    return all;
  };
  EXPECT_EQ(names(dict(weights)), "module.a module.b ");
  for (const char* wrapper : {"state_dict", "model_state_dict", "model", "net"})
    EXPECT_EQ(names(dict(text("best") + tensor(storage("0", 2), 0, {}, {}) + text(wrapper) + dict(weights))),
              "module.a module.b ");
  EXPECT_EQ(names(dict(text("net") + dict(text("state_dict") + dict(weights)))), "module.a module.b ");
  EXPECT_EQ(names(dict(weights + text("c") + tensor(storage("0", 2), 0, {1}, {1}))), "module.a module.b c ");
  EXPECT_EQ(names(dict(text("model") + text("alexnet") + weights)), "module.a module.b ") << "no dict, so no wrapper";
  // Numbers, texts, lists and metadata beside the tensors are left out.
  EXPECT_EQ(names(ordered_dict() + "("s + weights + text("epoch") + "K\x05"s + text("losses") + "](G12345678e"s + "u"s +
                  dict(text("_metadata") + ordered_dict()) + "b"),
            "module.a module.b ");
  EXPECT_THAT(refusal(zip_file(dict(text("epoch") + "K\x05"), {})), HasSubstr("no tensors under its keys 'epoch'"));
  const std::string two = dict(text("step") + "K\x05"s + text("gen") + two_floats() + text("disc") + two_floats());
  EXPECT_THAT(refusal(zip_file(two, {floats({1, 2})})), HasSubstr("'gen', 'disc'; choose the model with --key NAME, "
                                                                  "like --key gen"));
  EXPECT_THAT(refusal(zip_file("K\x05", {})), HasSubstr("no dict of tensors"));
  EXPECT_THAT(refusal(zip_file(dict(weights + weights), {floats({1, 2})})), HasSubstr("twice"));
}

TEST_F(PthTest, ParametersOldAndNew) {
  const std::string t = tensor(storage("0", 2), 0, {2}, {1});
  const std::string parameter = global("torch.nn.parameter", "Parameter");
  const std::vector<std::string> forms = {
      call("torch._utils", "_rebuild_parameter", tuple(t + "\x88"s + ordered_dict())),
      call("torch._utils", "_rebuild_parameter_with_state", tuple(t + "\x88"s + ordered_dict() + "}")),
      call("torch._utils", "_rebuild_tensor", tuple(storage("0", 2) + integer(0) + integers({2}) + integers({1}))),
      parameter + tuple(t + "\x88") + "R",
      parameter + ")\x81"s + tuple(t + "N"s + ordered_dict() + "\x88\x89") + "b",
      parameter + ")\x81"s + tuple(storage("0", 2) + integer(0) + integers({2}) + integers({1})) + "b",
      parameter + tuple(t) + "\x81"s + tuple("\x88\x89"s + ordered_dict()) + "b"};
  for (const std::string& form : forms)
    EXPECT_THAT(read(open(zip_file(dict(text("p") + form), {floats({1, 2})})), "p"), ElementsAre(1.0F, 2.0F));
  EXPECT_THAT(refusal(zip_file(dict(text("p") + parameter + ")\x81"), {})), HasSubstr("no tensors"));
  EXPECT_THAT(refusal(zip_file(dict(text("p") + call("torch._utils", "_rebuild_parameter", tuple("NNN"))), {})),
              HasSubstr("no tensor"));
}

/// As Python 2 wrote it: texts of bytes, an OrderedDict of pairs, memo from 1, numbers as LONG1.
TEST_F(PthTest, LegacyStreamOfPython2) {
  const auto old_text = [](const std::string& value) {
    return "U"s + std::string(1, static_cast<char>(value.size())) + value;
  };
  const std::string type = global("torch", "FloatStorage") + "q\x01";
  const std::string storage_b =
      tuple(old_text("storage") + type + old_text("20") + "T\x06\0\0\0cuda:0"s + "\x8A\x01\x03N") + "Q";
  const std::string storage_a = tuple(old_text("storage") + "h\x01"s + old_text("10") + old_text("cpu") +
                                      "\x8A\x01\x04"s + tuple(old_text("11") + integer(1) + integer(2))) +
                                "Q";
  const auto pair = [&](const std::string& name, const std::string& value) {
    return "]("s + old_text(name) + value + "e";
  };
  const auto old_tensor = [](const std::string& from, int64_t size) {
    return call("torch._utils", "_rebuild_tensor_v2",
                tuple(from + integer(0) + integers({size}) + integers({1}) + "\x89N"));
  };
  const std::string object =
      call("collections", "OrderedDict",
           "]("s + pair("b", old_tensor(storage_b, 3)) + pair("a", old_tensor(storage_a, 2)) + "e\x85");
  const std::string keys = old_text("10") + old_text("20");
  const std::string data =
      little_endian<int64_t>(4) + floats({4, 5, 6, 7}) + little_endian<int64_t>(3) + floats({1, 2, 3});
  const PthFile file = open(legacy_file(object, keys, data));
  EXPECT_THAT(read(file, "b"), ElementsAre(1, 2, 3)) << "data lies in the order of the keys, not of the dict";
  EXPECT_THAT(read(file, "a"), ElementsAre(5, 6)) << "a view of a storage";

  EXPECT_THAT(refusal(legacy_file(object, keys, data + "x")), HasSubstr("1 bytes follow"));
  EXPECT_THAT(refusal(legacy_file(object, keys, data.substr(0, data.size() - 1))), HasSubstr("cut off"));
  EXPECT_THAT(refusal(legacy_file(object, old_text("20"), data)), HasSubstr("should have 3 elements but has 4"));
  EXPECT_THAT(refusal(legacy_file(object, old_text("10"), data.substr(0, 24))), HasSubstr("1 storages are listed, 2"));
  EXPECT_THAT(refusal(legacy_file(object, keys + old_text("30"), data)), HasSubstr("no tensor uses"));
  EXPECT_THAT(refusal(legacy_file(object, old_text("10") + old_text("10"), data)), HasSubstr("different names"));
  std::string huge = data;
  huge.replace(0, 8, 8, '\x7F');
  EXPECT_THAT(refusal(legacy_file(object, keys, huge)), HasSubstr("should have 4 elements"));
}

/// A file of a terabyte, of which almost nothing takes up disk: reading it whole would be refused
/// for lack of memory.
TEST_F(PthTest, HugeFilesOfAnotherKindAreRefusedAtOnce) {
  constexpr uintmax_t huge = uintmax_t{1} << 40;
  const auto refusal_of = [&](const std::string& begin, const std::string& end = "") {
    write_bytes(path(), bytes_of_text(begin));
    std::filesystem::resize_file(path(), huge);
    if (!end.empty()) {
      std::ofstream file(path(), std::ios::app | std::ios::binary);
      file << end;
    }
    const std::string message = message_of<FormatError>([&] { PthFile{path()}; });
    std::filesystem::remove(path());
    return message;
  };
  EXPECT_THAT(refusal_of(zip_file(two_floats(), {floats({1, 2})})), HasSubstr("no end record"));
  EXPECT_THAT(refusal_of(std::string(257, 'x') + "ustar"), HasSubstr("a tar archive"));
  EXPECT_THAT(refusal_of(pickle("]")), HasSubstr("a pickle that torch.save did not write"));
  EXPECT_THAT(refusal_of(legacy_file(two_floats(), text("0"), little_endian<int64_t>(2) + floats({1, 2}))),
              HasSubstr("bytes follow the last tensor"));
  EXPECT_THAT(refusal_of(legacy_file("\x8D"s + little_endian(int64_t{1} << 50), "", "")), HasSubstr("it is cut off"));
  const std::string terabytes = dict(text("w") + tensor(storage("0", int64_t{1} << 45), 0, {2}, {1}));
  EXPECT_THAT(refusal_of(legacy_file(terabytes, text("0"), "")), HasSubstr("cut off"));

  // A directory behind a terabyte that belongs to nobody, and one of a terabyte.
  const std::string zip = zip_of(zip_parts(two_floats(), {floats({1, 2})}), Zip64::everywhere);
  const size_t directory = zip.find("PK\x01\x02"), record = zip.find("PK\x06\x06");
  const auto behind = [&](std::string tail, uint64_t begin, uint64_t size) {
    const uint64_t record_at = huge + record - directory;
    const auto put = [&](size_t at, uint64_t value) { tail.replace(at - directory, 8, little_endian(value)); };
    put(record + 40, size);
    put(record + 48, begin);
    put(record + 56 + 8, record_at);
    return refusal_of(zip.substr(0, directory), tail);
  };
  EXPECT_THAT(behind(zip.substr(directory), huge, record - directory), HasSubstr("belong to no entry"));
  EXPECT_THAT(behind(zip.substr(directory), 0, huge), HasSubstr("a directory of 1099511627776 bytes"));
}

TEST_F(PthTest, LargeFilesOfTheOldFormatAreRead) {
  const std::string many(size_t{20} << 20, '\0');
  const auto elements = static_cast<int64_t>(many.size() / sizeof(float));
  const std::string object = dict(text("w") + tensor(storage("0", elements), 0, {2}, {1}));
  const std::string data = little_endian(elements) + many;
  const auto size_of = [&](const std::string& content) { return open(content).tensors().size(); };
  EXPECT_EQ(size_of(legacy_file(object, text("0"), data)), 1U);
  EXPECT_THAT(refusal(legacy_file(object, text("0"), data + "x")), HasSubstr("1 bytes follow the last tensor"));
  EXPECT_THAT(refusal(legacy_file(object, text("0"), data.substr(1))), HasSubstr("cut off"));
  // Pickles longer than what is looked at first.
  const std::string long_text = dict(text("note") + text(many) + text("w") + tensor(storage("0", 2), 0, {2}, {1}));
  EXPECT_EQ(size_of(legacy_file(long_text, text("0"), little_endian<int64_t>(2) + floats({1, 2}))), 1U);
}

TEST_F(PthTest, NothingIsEverRun) {
  const std::string victim = (folder_.path() / "run").string();
  const std::string command = tuple(text("touch "s + victim));
  for (const auto& [module, name] : {std::pair{"os", "system"},
                                     {"posix", "system"},
                                     {"builtins", "eval"},
                                     {"torch", "load"},
                                     {"torch.storage", "_load_from_bytes"}}) {
    const std::string attack = call(module, name, command);
    for (const std::string& object : {attack, dict(text("w") + attack), two_floats() + attack + "b"}) {
      EXPECT_THAT(refusal(zip_file(object, {floats({1, 2})})),
                  HasSubstr(std::string("'") + module + "."s + name + "'"));
      EXPECT_NE(refusal(legacy_file(object, "", "")), "");
    }
    EXPECT_NE(refusal(pickle(attack)), "") << "a plain pickle";
  }
  EXPECT_FALSE(std::filesystem::exists(victim));
  EXPECT_THAT(refusal(zip_file(tuple(text("module") + global("a", "B") + text("f") + text("s")) + "Q", {})),
              HasSubstr("torch.save(model.state_dict(), FILE)"));
  EXPECT_THAT(refusal(zip_file(global("my.net", "Net") + ")\x81}b", {})), HasSubstr("my.net.Net"));
}

TEST_F(PthTest, BrokenPicklesAreRefused) {
  for (const std::string& object : {"t"s,
                                    "u"s,
                                    "s"s,
                                    "R"s,
                                    "Q"s,
                                    "b"s,
                                    "a"s,
                                    "e"s,
                                    "\x85"s,
                                    "Nq"s,
                                    "h\x05"s,
                                    "j\1\2\3\4"s,
                                    "]N(u"s,
                                    "}(Nu"s,
                                    "(NNs"s,
                                    "N(\x86"s,
                                    "X\xFF\xFF\xFF\xFFshort"s,
                                    "T\xFF\xFF\xFF\x7Fshort"s,
                                    "\x8A\xFFshort"s,
                                    "cos\nsystem"s,
                                    "NNR"s,
                                    ")NR"s,
                                    "]]a(R"s,
                                    "NQ"s,
                                    ")Q"s,
                                    "NNb"s,
                                    "\x95\0\0\0\0\0\0\0\0"s,
                                    "I1\n"s,
                                    "\x93"s,
                                    "0"s,
                                    ""s,
                                    call("collections", "OrderedDict", "](NNe\x85"),
                                    call("torch", "Size", tuple("N")),
                                    call("torch._utils", "_rebuild_tensor_v2", tuple("NNNNNN")),
                                    call("torch._utils", "_rebuild_tensor_v2", ")")})
    EXPECT_NE(refusal(zip_file(object, {})), "") << ::testing::PrintToString(object);
  EXPECT_THAT(refusal(zip_file("\x82\0"s, {})), HasSubstr("byte 2: opcode 0x82"));
}

#if defined(__SANITIZE_ADDRESS__)
constexpr bool instrumented = true;  // AddressSanitizer keeps what is freed
#else
constexpr bool instrumented = false;
#endif

/// Peak of this process's memory so far, in MB.
double peak_memory() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1000;
}

TEST_F(PthTest, BombsCyclesAndDepthCostNothing) {
  const double before = peak_memory();
  std::string doubling = "](NNNNNNNNeq\x01";
  for (int i = 0; i < 100'000; ++i)
    doubling +=
        "](h\x01h\x01h\x01h\x01h\x01h\x01h\x01h\x01"
        "eq\x01";
  const std::string no_end(200'000, ']');
  const std::string deep = ")"s + std::string(100'000, '\x85');
  std::string pairs = "](";
  for (int i = 0; i < 1000; ++i) pairs += "](NNe";
  pairs += "e\x85q\x02";
  std::string dicts = pairs;
  for (int i = 0; i < 100'000; ++i) dicts += global("collections", "OrderedDict") + "h\x02R";
  std::string many(2'000'000, 'N');
  std::string marks(2'000'000, '(');
  std::string memos;
  for (uint32_t i = 0; i < 1'200'000; ++i) memos += "r"s + little_endian(i * 3'000);
  // A dict that wraps itself, and a list that holds itself.
  const std::string cycle = "}q\x01"s + text("state_dict") + "h\x01s";
  const std::string loop =
      "]q\x01h\x01"
      "a";
  for (const std::string& object : {doubling, no_end, deep, dicts, many, marks, "N"s + memos, cycle, loop}) {
    EXPECT_NE(refusal(zip_file(object, {})), "");
    EXPECT_NE(refusal(legacy_file(object, "", "")), "");
  }
  // Tensors over and over the same storage.
  const std::string large = floats(std::vector<float>(100'000));
  std::string views = storage("0", 100'000) + "q\x01";
  std::string items;
  for (int i = 0; i < 1000; ++i) items += text("t"s + std::to_string(i)) + tensor("h\x01", 0, {100'000}, {1});
  EXPECT_THAT(refusal(zip_file("("s + views + "t"s + dict(items), {large})), HasSubstr("take up more"));
  if (!instrumented) {
    EXPECT_LT(peak_memory() - before, 250);
  }
}

TEST_F(PthTest, ContentTellsNotTheName) {
  const auto is = [&](const std::string& content) { return is_pth(in_memory(content)); };
  EXPECT_TRUE(is(zip_file(two_floats(), {floats({1, 2})})));
  EXPECT_TRUE(is(legacy_file("}", "", "")));
  EXPECT_FALSE(is(""));
  EXPECT_FALSE(is("PK"));
  EXPECT_FALSE(is("\x80\x02\0\0\0\0\0\0{"s)) << "a safetensors file whose length looks like a pickle";
  EXPECT_FALSE(is("PK\x03\x04\0\0\0\0{"s));
  write_tar(folder_.path() / "old.tar", {{"storages", bytes_of_text("x")}});
  EXPECT_TRUE(is_pth(folder_.path() / "old.tar"));
  EXPECT_THAT(message_of<FormatError>([&] { PthFile{folder_.path() / "old.tar"}; }), HasSubstr("tar archive"));
  EXPECT_THAT(refusal("\x80\x02}."), HasSubstr("torch.save did not write"));
  EXPECT_THAT(refusal(zip_of({{"notes.txt", "x"}})), HasSubstr("none of PyTorch"));
}

TEST_F(PthTest, WhatIsWrittenReadsBack) {
  std::vector<float> values = {0.0F, -0.0F, NAN, INFINITY, 1e-45F, -1.5F};
  float scalar = 7;
  const std::vector<PthTensorToWrite> tensors = {{"a.weight", {values.data(), {2, 3}}},
                                                 {"empty", {nullptr, {0, 3}}},
                                                 {"scalar", {&scalar, {}}},
                                                 {"\xC3\xA4", {values.data(), {6}}}};
  write_pth(path(), tensors);
  const PthFile file(path());
  EXPECT_EQ(file.verify(), 6) << "all but the empty one";
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const PthTensor& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.name, tensors[i].name);
    EXPECT_EQ(tensor.element->name, "float32");
    EXPECT_TRUE(tensor.contiguous());
    EXPECT_EQ(Shape(tensor.sizes), tensors[i].values.shape());
    std::vector<uint8_t> scratch;
    EXPECT_TRUE(std::ranges::equal(file.bytes_of(tensor, scratch), bytes_of(tensors[i].values.span())));
  }
  const std::string content = content_of(path());
  const Bytes bytes = read_bytes(path());
  for (const ZipEntry& entry : read_zip_directory(bytes, "file"))
    EXPECT_EQ((entry.bytes.data() - bytes.data()) % 64, 0) << entry.name;
  write_pth(path(), tensors);
  EXPECT_EQ(content_of(path()), content) << "the same tensors give the same bytes";

  EXPECT_THROW(write_pth(path(), {tensors[0], tensors[0]}), FormatError);
  EXPECT_THROW(write_pth(path(), {{"\xFF", {values.data(), {6}}}}), FormatError);
  EXPECT_THROW(write_pth(folder_.path() / "missing" / "file", tensors), IoError);
  EXPECT_EQ(content_of(path()), content);
}

}  // namespace
}  // namespace nibblenet
