#include "engine/io/state_dict.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"

namespace nibblenet {
namespace {

using testing::pack_all;
using testing::same_bits;
using testing::small_alexnet;
using testing::TemporaryFolder;

TEST(StateDict, FloatModelRoundTrips) {
  const TemporaryFolder folder;
  StateDict dict = small_alexnet(1);
  dict.metadata["image_size"] = "64";
  save_state_dict(folder.path() / "m.safetensors", dict);
  const StateDict read = load_state_dict(folder.path() / "m.safetensors");
  EXPECT_TRUE(same_bits(dict, read));
  EXPECT_EQ(read.metadata.at("image_size"), "64");
  EXPECT_FALSE(read.packed());
}

TEST(StateDict, PackedModelRoundTripsForEveryMethodAndWidth) {
  const TemporaryFolder folder;
  for (const MethodTraits& traits : method_table()) {
    for (const Scheme& scheme : schemes_of_every_width(traits.method)) {
      SCOPED_TRACE(to_string(scheme));
      StateDict dict = small_alexnet(2);
      pack_all(dict, scheme);
      save_state_dict(folder.path() / "p.safetensors", dict);
      const StateDict read = load_state_dict(folder.path() / "p.safetensors");
      EXPECT_TRUE(read.packed());
      EXPECT_EQ(read.at("classifier.1.weight").packed_values().scheme, scheme);
      EXPECT_TRUE(same_bits(dequantized(dict), dequantized(read)));

      int64_t bytes = read.header_bytes;
      for (const Parameter& parameter : read.parameters) bytes += parameter.file_bytes;
      EXPECT_EQ(bytes, read.file_bytes) << "the ledger's sum is the file's length";
    }
  }
}

TEST(StateDict, ACopyHoldsEverything) {
  const TemporaryFolder folder;
  StateDict dict = small_alexnet(3);
  dict.metadata["image_size"] = "64";
  pack_all(dict, parse_scheme("linear:3"));
  save_state_dict(folder.path() / "m", dict, Compression::rans);
  const StateDict read = load_state_dict(folder.path() / "m");
  const StateDict copy = copy_of(read);
  EXPECT_TRUE(same_bits(dequantized(copy), dequantized(read)));
  EXPECT_EQ(copy.metadata, read.metadata);
  EXPECT_EQ(copy.file_bytes, read.file_bytes);
  EXPECT_EQ(copy.header_bytes, read.header_bytes);
  ASSERT_EQ(copy.parameters.size(), read.parameters.size());
  for (size_t i = 0; i < copy.parameters.size(); ++i) {
    EXPECT_EQ(copy.parameters[i].packed(), read.parameters[i].packed());
    EXPECT_EQ(copy.parameters[i].file_bytes, read.parameters[i].file_bytes);
    EXPECT_EQ(copy.parameters[i].compressed_bytes, read.parameters[i].compressed_bytes);
    EXPECT_EQ(copy.parameters[i].stored_as, read.parameters[i].stored_as);
  }
}

TEST(StateDict, SavingWhatWasReadChangesNothing) {
  const TemporaryFolder folder;
  StateDict dict = small_alexnet(3);
  pack_all(dict, parse_scheme("linear:3:block:16:f16"));
  const auto content = [&](const char* name) {
    std::ifstream file(folder.path() / name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  save_state_dict(folder.path() / "a", dict);
  save_state_dict(folder.path() / "b", load_state_dict(folder.path() / "a"));
  save_state_dict(folder.path() / "c", load_state_dict(folder.path() / "b"));
  EXPECT_EQ(content("b"), content("c"));
  EXPECT_TRUE(
      same_bits(dequantized(load_state_dict(folder.path() / "a")), dequantized(load_state_dict(folder.path() / "b"))));
}

/// A file as it was written before headers had a checksum.
testing::Bytes older(const testing::Bytes& file, const std::string& version) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  std::string header(file.begin() + 8, file.begin() + 8 + static_cast<ptrdiff_t>(length));
  const auto drop = [&](const std::string& key) {
    const size_t at = header.find(key);
    header.erase(at, header.find(',', at) + 1 - at);
  };
  drop("\"header_xxh3\":");
  drop("\"format_version\":");
  if (version.empty())
    drop("\"format\":");  // float files named none
  else
    header.insert(header.find("\"format\":"), "\"format_version\":\"" + version + "\",");
  const uint64_t shorter = header.size();
  testing::Bytes result(sizeof shorter);
  std::memcpy(result.data(), &shorter, sizeof shorter);
  result.insert(result.end(), header.begin(), header.end());
  result.insert(result.end(), file.begin() + 8 + static_cast<ptrdiff_t>(length), file.end());
  return result;
}

TEST(StateDict, OlderFilesAreStillRead) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "old";
  const auto expect_read = [&](const StateDict& dict, const std::string& version, Compression compression) {
    save_state_dict(path, dict, compression);
    testing::write_bytes(path, older(testing::read_bytes(path), version));
    const SafetensorsFile file(path);
    EXPECT_FALSE(file.metadata().contains("header_xxh3"));
    EXPECT_GT(file.verify(), 0);
    EXPECT_TRUE(same_bits(dequantized(dict), dequantized(load_state_dict(path)))) << "version " << version;
  };
  StateDict dict = small_alexnet(5);
  expect_read(dict, "", Compression::none);
  pack_all(dict, parse_scheme("linear:4:channel"));
  expect_read(dict, "1", Compression::none);
  expect_read(dict, "2", Compression::rans);
}

TEST(StateDict, CompressedModelsEqualPlainOnesAndTakeFewerBytes) {
  const TemporaryFolder folder;
  for (const MethodTraits& traits : scalar_methods()) {
    for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits) {
      const Scheme scheme = default_scheme(traits.method, bits);
      SCOPED_TRACE(to_string(scheme));
      StateDict dict = small_alexnet(2);
      pack_all(dict, scheme);
      save_state_dict(folder.path() / "plain", dict);
      save_state_dict(folder.path() / "rans", dict, Compression::rans);
      const StateDict read = load_state_dict(folder.path() / "rans");
      int64_t bytes = read.header_bytes, plain_bytes = 0;
      for (const Parameter& parameter : read.parameters) {
        bytes += parameter.file_bytes;
        const Parameter& original = dict.at(parameter.name);
        if (!parameter.packed()) continue;
        const PackedTensor &a = parameter.packed_values(), &b = original.packed_values();
        EXPECT_EQ(a.codes, b.codes) << parameter.name;
        EXPECT_EQ(a.block_ids, b.block_ids) << parameter.name;
        EXPECT_EQ(a.scales, b.scales) << parameter.name;
      }
      for (const Parameter& parameter : load_state_dict(folder.path() / "plain").parameters)
        plain_bytes += parameter.file_bytes;
      EXPECT_EQ(bytes, read.file_bytes) << "the ledger's sum is the file's length";
      EXPECT_LE(bytes - read.header_bytes, plain_bytes) << "never larger than the plain form";
      EXPECT_GT(SafetensorsFile(folder.path() / "rans").verify(), 0);
      save_state_dict(folder.path() / "again", read);
      EXPECT_EQ(testing::read_bytes(folder.path() / "again"), testing::read_bytes(folder.path() / "plain"))
          << "decompressed, it is the plain file";
    }
  }
}

TEST(StateDict, CompressionIsNamed) {
  const TemporaryFolder folder;
  StateDict dict = small_alexnet(2);
  pack_all(dict, parse_scheme("linear:8:channel"));
  save_state_dict(folder.path() / "plain", dict);
  save_state_dict(folder.path() / "rans", dict, Compression::rans);
  const SafetensorsFile plain(folder.path() / "plain"), compressed(folder.path() / "rans");
  for (const SafetensorsFile* file : {&plain, &compressed}) {
    EXPECT_EQ(file->metadata().at("format"), "nibblenet-packed");
    EXPECT_EQ(file->metadata().at("format_version"), "4");
  }
  EXPECT_EQ(compressed.metadata().at("compression:classifier.1.weight.codes"),
            "rans:" + plain.metadata().at("xxh3:classifier.1.weight.codes"));
  EXPECT_EQ(compressed.find("classifier.1.weight.codes"), nullptr);
  EXPECT_LT(compressed.at("classifier.1.weight.codes.rans").bytes.size(),
            plain.at("classifier.1.weight.codes").bytes.size());
}

TEST(StateDict, DamagedCompressedModelsAreRefused) {
  const TemporaryFolder folder;
  StateDict dict = small_alexnet(4);
  pack_all(dict, parse_scheme("linear:4:channel"));
  save_state_dict(folder.path() / "good", dict, Compression::rans);
  const SafetensorsFile good(folder.path() / "good");
  const std::string codes = "classifier.4.weight.codes", stream = codes + ".rans";
  const auto refused = [&](const auto& apply) {
    std::vector<TensorToWrite> tensors;
    for (const TensorEntry& entry : good.tensors())
      tensors.push_back({entry.name, entry.dtype, entry.sizes, entry.bytes});
    auto metadata = good.metadata();
    std::erase_if(metadata, [](const auto& item) { return item.first.starts_with("xxh3:"); });
    apply(*std::ranges::find(tensors, stream, &TensorToWrite::name), metadata, tensors);
    write_safetensors(folder.path() / "bad", tensors, metadata);
    EXPECT_THROW(load_state_dict(folder.path() / "bad"), FormatError);
  };
  using Metadata = std::map<std::string, std::string>;
  using Tensors = std::vector<TensorToWrite>;
  // The file's own checksums are removed, so that only decoding can find the damage.
  const auto original = good.at(stream).bytes;
  std::vector<uint8_t> damaged(original.begin(), original.end());
  for (size_t at = 0; at < damaged.size(); at += at < 16 ? 1 : 17) {
    SCOPED_TRACE(::testing::Message() << "byte " << at);
    damaged[at] ^= static_cast<uint8_t>(1 << at % 8);
    refused([&](TensorToWrite& tensor, Metadata&, Tensors&) { tensor.bytes = damaged; });
    damaged[at] = original[at];
  }
  for (const size_t length : {size_t{0}, size_t{1}, size_t{7}, size_t{8}, original.size() / 2, original.size() - 1}) {
    SCOPED_TRACE(::testing::Message() << length << " bytes");
    refused([&](TensorToWrite& tensor, Metadata&, Tensors&) {
      tensor.bytes = original.first(length);
      tensor.sizes = {static_cast<int64_t>(length)};
    });
  }
  refused([&](auto&, Metadata& metadata, Tensors&) { metadata.erase("compression:" + codes); });
  refused([&](auto&, Metadata& metadata, Tensors&) { metadata["compression:" + codes] = "zip:0"; });
  refused([&](auto&, Metadata& metadata, Tensors&) { metadata["compression:" + codes] = "rans:0123456789abcdef"; });
  refused(
      [&](auto&, Metadata& metadata, Tensors&) { metadata["shape:classifier.4.weight"] = "1073741824x1073741824"; });
  refused([&](auto&, Metadata& metadata, Tensors&) { metadata["shape:classifier.4.weight"] = "16384x67000"; });
  refused([&](TensorToWrite& tensor, Metadata&, Tensors& tensors) {  // both forms at once
    TensorToWrite plain = tensor;
    plain.name = codes;
    tensors.push_back(plain);
  });
}

/// A packed model whose file is rewritten with one thing changed.
struct Corruption {
  const char* name;
  std::function<void(std::vector<TensorToWrite>&, std::map<std::string, std::string>&)> apply;
};

TEST(StateDict, PackedModelsThatContradictThemselvesAreRefused) {
  const TemporaryFolder folder;
  StateDict dict = small_alexnet(4);
  pack_all(dict, parse_scheme("linear:4:channel:zero-point"));
  save_state_dict(folder.path() / "good", dict);
  const SafetensorsFile good(folder.path() / "good");

  const auto tensor = [](std::vector<TensorToWrite>& tensors, std::string_view name) -> TensorToWrite& {
    return *std::ranges::find(tensors, name, &TensorToWrite::name);
  };
  const std::string weight = "classifier.4.weight";
  const std::vector<uint8_t> nan_scale(35 * 4, 0xFF);
  const std::vector<uint8_t> wild_zero_points(35, 200);
  const std::vector<Corruption> corruptions = {
      {"unknown scheme", [&](auto&, auto& metadata) { metadata["scheme:" + weight] = "magic:4:channel"; }},
      {"five dimensions", [&](auto&, auto& metadata) { metadata["shape:" + weight] = "35x67x1x1x1"; }},
      {"another width", [&](auto&, auto& metadata) { metadata["scheme:" + weight] = "linear:8:channel:zero-point"; }},
      {"another granularity",
       [&](auto&, auto& metadata) { metadata["scheme:" + weight] = "linear:4:tensor:zero-point"; }},
      {"another shape", [&](auto&, auto& metadata) { metadata["shape:" + weight] = "35x99"; }},
      {"huge shape",
       [&](auto&, auto& metadata) { metadata["shape:" + weight] = "4611686018427387904x4611686018427387904"; }},
      {"negative shape", [&](auto&, auto& metadata) { metadata["shape:" + weight] = "-35x67"; }},
      {"no shape", [&](auto&, auto& metadata) { metadata.erase("shape:" + weight); }},
      {"newer version", [&](auto&, auto& metadata) { metadata["format_version"] = "3"; }},
      {"newer float version",
       [&](auto&, auto& metadata) {
         metadata["format"] = "nibblenet-float";
         metadata["format_version"] = "2";
       }},
      {"another format of ours", [&](auto&, auto& metadata) { metadata["format"] = "nibblenet-calibration"; }},
      {"scales of NaN", [&](auto& tensors, auto&) { tensor(tensors, weight + ".scales").bytes = nan_scale; }},
      {"zero points beyond the codes",
       [&](auto& tensors, auto&) { tensor(tensors, weight + ".zero_points").bytes = wild_zero_points; }},
      {"no codes", [&](auto& tensors,
                       auto&) { std::erase_if(tensors, [&](const auto& t) { return t.name == weight + ".codes"; }); }},
      {"no scales",
       [&](auto& tensors, auto&) {
         std::erase_if(tensors, [&](const auto& t) { return t.name == weight + ".scales"; });
       }},
  };
  for (const Corruption& corruption : corruptions) {
    SCOPED_TRACE(corruption.name);
    std::vector<TensorToWrite> tensors;
    for (const TensorEntry& entry : good.tensors())
      tensors.push_back({entry.name, entry.dtype, entry.sizes, entry.bytes});
    auto metadata = good.metadata();
    std::erase_if(metadata, [](const auto& item) { return item.first.starts_with("xxh3:"); });
    corruption.apply(tensors, metadata);
    write_safetensors(folder.path() / "bad", tensors, metadata);
    EXPECT_THAT(testing::message_of<Error>([&] { load_state_dict(folder.path() / "bad"); }),
                ::testing::HasSubstr((folder.path() / "bad").string()));
  }
}

}  // namespace
}  // namespace nibblenet
