#include "layers/network/foreign_names.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"

namespace nibblenet::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

namespace fs = std::filesystem;

StateDict dict_of(const std::vector<std::string>& names) {
  StateDict dict;
  for (const std::string& name : names)
    dict.parameters.push_back({.name = name, .value = Tensor<float>(host_memory(), {2}, MemoryCategory::data)});
  return dict;
}

std::vector<std::string> names_of(const StateDict& dict) {
  std::vector<std::string> names;
  for (const Parameter& parameter : dict.parameters) names.push_back(parameter.name);
  return names;
}

std::vector<std::string> adopted(const std::vector<std::string>& names) {
  StateDict dict = dict_of(names);
  adopt_names(dict);
  return names_of(dict);
}

TEST(ForeignNames, PrefixesOfAnyOrderAndDepthGo) {
  for (const char* prefix : {"", "module.", "_orig_mod.module.", "module.module.", "model.", "net.", "backbone.",
                             "encoder.module.", "a.b.c.d.", "module.alexnet._orig_mod."})
    EXPECT_THAT(adopted({prefix + std::string("features.0.weight"), prefix + std::string("classifier.6.bias")}),
                ElementsAre("features.0.weight", "classifier.6.bias"))
        << prefix;
}

TEST(ForeignNames, WrappersInsideANameGo) {
  EXPECT_THAT(adopted({"features.module.0.weight", "classifier._orig_mod.6.bias"}),
              ElementsAre("features.0.weight", "classifier.6.bias"));
  EXPECT_THAT(adopted({"module.features.module.0.weight", "module.classifier.6.module.bias"}),
              ElementsAre("features.0.weight", "classifier.6.bias"));
}

TEST(ForeignNames, PartsMayHavePrefixesOfTheirOwn) {
  EXPECT_THAT(adopted({"backbone.features.0.weight", "head.classifier.6.bias"}),
              ElementsAre("features.0.weight", "classifier.6.bias"));
}

TEST(ForeignNames, NamesOfNoNetworkStay) {
  EXPECT_THAT(
      adopted({"layer1.0.conv1.weight", "module.fc.bias", "features", "features.0.conv.0.weight", "", "..."}),
      ElementsAre("layer1.0.conv1.weight", "module.fc.bias", "features", "features.0.conv.0.weight", "", "..."));
}

TEST(ForeignNames, AveragedWeightsAreLeftAsideAndNamed) {
  StateDict dict = dict_of({"model_ema.module.features.0.weight", "model.features.0.weight"});
  dict.parameters[1].values().view().span()[0] = 7;
  EXPECT_THAT(adopt_names(dict), ElementsAre(HasSubstr("--key model_ema.module")));
  EXPECT_THAT(names_of(dict), ElementsAre("features.0.weight"));
  EXPECT_EQ(dict.parameters[0].values().view().span()[0], 7);
  dict = dict_of({"ema.features.0.weight"});
  EXPECT_THAT(adopt_names(dict), ElementsAre("takes the averaged weights under 'ema'"));
  EXPECT_THAT(names_of(dict), ElementsAre("features.0.weight"));
}

TEST(ForeignNames, TwoNetworksAreNotMixed) {
  StateDict dict = dict_of({"student.features.0.weight", "teacher.features.0.weight"});
  EXPECT_THAT(message_of<FormatError>([&] { adopt_names(dict); }), HasSubstr("'student' and 'teacher'"));
  dict = dict_of({"features.0.weight", "features.module.0.weight"});
  EXPECT_THAT(message_of<FormatError>([&] { adopt_names(dict); }), HasSubstr("features.0.weight"));
}

/// Names and values that tests/peers/make_checkpoints.py gives every file, `offset` more in
/// averaged weights.
void expect_the_weights(const StateDict& dict, float offset, const std::string& file) {
  const std::vector<std::pair<std::string, Shape>> expected = {{"features.0.weight", {2, 3, 2, 2}},
                                                               {"features.0.bias", {2}},
                                                               {"classifier.1.weight", {3, 2}},
                                                               {"classifier.1.bias", {3}}};
  ASSERT_EQ(dict.parameters.size(), expected.size()) << file;
  for (size_t t = 0; t < expected.size(); ++t) {
    const Parameter* parameter = dict.find(expected[t].first);
    ASSERT_NE(parameter, nullptr) << file << ": " << expected[t].first;
    ASSERT_EQ(parameter->shape(), expected[t].second) << file;
    const auto values = parameter->values().view().span();
    for (size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(values[i], 100 * static_cast<float>(t) + static_cast<float>(i) + offset) << file << ": " << i;
  }
}

TEST(Checkpoints, WhatTrainingScriptsSaveIsRead) {
  int read = 0;
  for (const auto& entry : fs::directory_iterator(test_data_folder() / "checkpoints")) {
    const std::string name = entry.path().stem().string();
    if (name.starts_with("refused_") || name == "students") continue;
    StateDict dict = load_state_dict(entry.path(), Checksums::strict);
    std::vector<std::string> notes = adopt_names(dict);
    notes.insert(notes.end(), dict.notes.begin(), dict.notes.end());
    EXPECT_EQ(notes.size(), name.starts_with("ema_") ? 1U : 0U) << name;
    expect_the_weights(dict, name == "ema_only" ? 1000 : 0, name);
    ++read;
  }
  EXPECT_GE(read, 40);
}

TEST(Checkpoints, AKeyTakesOtherWeights) {
  const fs::path folder = test_data_folder() / "checkpoints";
  for (const auto& [name, key] : {std::pair{"ema_model_ema", "model_ema"},
                                  {"ema_state_dict", "ema_state_dict"},
                                  {"ema_timm", "state_dict_ema"},
                                  {"ema_prefixes", "model_ema"},
                                  {"students", "teacher"}}) {
    Reading reading;
    reading.key = key;
    StateDict dict = load_state_dict(folder / fmt::format("{}.pth", name), reading);
    EXPECT_THAT(adopt_names(dict), IsEmpty());
    EXPECT_THAT(dict.notes, IsEmpty());
    expect_the_weights(dict, 1000, name);
  }
  Reading reading;
  reading.key = "absent";
  EXPECT_THAT(message_of<UsageError>([&] { load_state_dict(folder / "sgd.pth", reading); }),
              HasSubstr("nothing under it; it has 'features.0.weight'"));
}

TEST(Checkpoints, ScalarsAreNamedAndLeftOut) {
  EXPECT_THAT(
      load_state_dict(test_data_folder() / "checkpoints/scalars.pth").left_out,
      ElementsAre("total_ops", "total_params", "features.0.total_ops", "features.0.total_params", "n_averaged"));
}

TEST(Checkpoints, WhatNeedsSourceCodeIsRefusedByName) {
  const auto refusal = [](const char* name) {
    return message_of<FormatError>([&] { load_state_dict(test_data_folder() / "checkpoints" / name); });
  };
  EXPECT_THAT(refusal("refused_module.pth"), HasSubstr("'__main__.Net'"));
  EXPECT_THAT(refusal("refused_module_inside.pth"), HasSubstr("'model' (an object of '__main__.Net')"));
  EXPECT_THAT(refusal("refused_quantized.pth"), HasSubstr("'classifier.1.weight' is made by"));
}

/// The same in safetensors, which has no dicts: prefixes and scalars, of types that no weight has.
TEST(Checkpoints, SafetensorsAreReadAlike) {
  const TemporaryFolder folder;
  const std::vector<float> plain = {1, 2}, mean = {3, 4};
  const std::vector<int64_t> count = {int64_t{1} << 40};
  const std::vector<double> operations = {1e9};
  write_safetensors(folder.path() / "x.safetensors",
                    {{"model.features.module.0.bias", DType::f32, {2}, bytes_of(std::span<const float>(plain))},
                     {"model_ema.features.0.bias", DType::f32, {2}, bytes_of(std::span<const float>(mean))},
                     {"model.num_batches_tracked", DType::i64, {}, bytes_of(std::span<const int64_t>(count))},
                     {"n_averaged", DType::i64, {1}, bytes_of(std::span<const int64_t>(count))},
                     {"model.total_ops", DType::f64, {1}, bytes_of(std::span<const double>(operations))}},
                    {});
  StateDict dict = load_state_dict(folder.path() / "x.safetensors");
  EXPECT_THAT(dict.left_out, ::testing::UnorderedElementsAre("n_averaged", "model.total_ops"));
  EXPECT_EQ(adopt_names(dict).size(), 1U);
  EXPECT_EQ(dict.at("features.0.bias").values().view().span()[1], 2);
  Reading reading;
  reading.key = "model_ema";
  dict = load_state_dict(folder.path() / "x.safetensors", reading);
  EXPECT_EQ(dict.at("features.0.bias").values().view().span()[1], 4);
}

TEST(Checkpoints, TextInAModelsPlaceIsCalledThat) {
  const TemporaryFolder folder;
  for (const auto& [text, mention] :
       {std::pair{"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"},
        {"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML page"},
        {"  <HTML lang=\"en\"></HTML>", "HTML page"},
        {"{\"error\": \"not found\"}", "a text, not a model"}}) {
    std::ofstream(folder.path() / "model.pth") << text;
    EXPECT_THAT(message_of<FormatError>([&] { load_state_dict(folder.path() / "model.pth"); }), HasSubstr(mention));
  }
}

TEST(Checkpoints, FilesOfOtherFormatsAreCalledByTheirNames) {
  const TemporaryFolder folder;
  for (const auto& [begin, mention] : {std::pair{std::string("GGUF\3\0\0\0", 8), "a GGUF model"},
                                       {std::string("\x89HDF\r\n\x1a\n"), "an HDF5 file"},
                                       {std::string("\x93NUMPY\1\0", 8), "a NumPy array"},
                                       {std::string("\x1F\x8B\b\0\0\0\0\0", 8), "a gzip archive"},
                                       {std::string("BZh91AY&"), "a bzip2 archive"},
                                       {std::string("\xFD\x37zXZ\0\0\4", 8), "an xz archive"},
                                       {std::string("\x28\xB5\x2F\xFD\4\x88\xA1\xB2"), "a zstd archive"},
                                       {std::string("\xFF\xD8\xFF\xE0\0\x10JF", 8), "a JPEG picture"},
                                       {std::string("\177ELF\2\1\1\0", 8), "a program"},
                                       {std::string("\x89PNG\r\n\x1a\n"), "a PNG picture"},
                                       {std::string("\b\n\x12\7pytorch\x1a", 12), "an ONNX model"}}) {
    std::ofstream(folder.path() / "model.safetensors") << begin << std::string(100, '\xAA');
    EXPECT_THAT(message_of<FormatError>([&] { load_state_dict(folder.path() / "model.safetensors"); }),
                HasSubstr(mention));
  }
}

TEST(Checkpoints, AHeaderMayBeAsLongAsAnotherFormatBegins) {
  const TemporaryFolder folder;
  const uint64_t length = 0x8B1F;  // its bytes are gzip's first: 1F 8B
  std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  header.resize(length, ' ');
  std::ofstream(folder.path() / "model.safetensors", std::ios::binary)
      << std::string(reinterpret_cast<const char*>(&length), sizeof length) << header << std::string(8, '\0');
  EXPECT_EQ(load_state_dict(folder.path() / "model.safetensors").parameters.size(), 1U);
}

}  // namespace
}  // namespace nibblenet::testing
