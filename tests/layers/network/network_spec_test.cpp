#include "layers/network/network_spec.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>

#include "tests/support/small_network.h"

namespace nibblenet {
namespace {

namespace fs = std::filesystem;
using testing::alexnet;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using testing::small_alexnet;
using ::testing::ThrowsMessage;

TEST(NetworkSpec, NamesOfLayersAreInOrder) {
  EXPECT_THAT(feature_names(alexnet),
              ElementsAre("features.0", "features.3", "features.6", "features.8", "features.10"));
  EXPECT_THAT(classifier_names(alexnet), ElementsAre("classifier.1", "classifier.4", "classifier.6"));
  EXPECT_EQ(layer_names(alexnet).size(), 8U);
}

TEST(NetworkSpec, IsFoundByItsNameAndByAStateDicts) {
  for (const NetworkSpec& network : networks()) EXPECT_EQ(&network_named(network.name), &network);
  EXPECT_THAT([] { network_named("resnet"); }, ThrowsMessage<UsageError>(HasSubstr("alexnet")));
  EXPECT_EQ(&network_of(small_alexnet(1)), &alexnet);
  EXPECT_EQ(&network_of(testing::small_vgg16(1)), &testing::vgg16);
  StateDict foreign;
  foreign.parameters.push_back({.name = "layer.weight", .value = testing::random_tensor({3, 4}, 1)});
  EXPECT_THAT([&] { network_of(foreign); }, ThrowsMessage<FormatError>(HasSubstr("AlexNet")));
}

/// The AlexNet of 2012, whose second, fourth and fifth convolutions see half of the channels, under
/// torchvision's names and under others.
TEST(NetworkSpec, TwoTowersAreRefused) {
  const std::vector<std::pair<std::string, Shape>> towers = {
      {"features.0", {12, 3, 11, 11}}, {"features.3", {16, 6, 5, 5}},   {"features.6", {24, 16, 3, 3}},
      {"features.8", {24, 12, 3, 3}},  {"features.10", {16, 12, 3, 3}}, {"classifier.1", {20, 576}},
      {"classifier.4", {20, 20}},      {"classifier.6", {10, 20}}};
  std::vector<std::pair<std::string, Shape>> others = towers;
  for (size_t i = 0; i < others.size(); ++i) others[i].first = fmt::format("layer{}", i + 1);
  for (const auto& weights : {towers, others})
    EXPECT_THAT([&] { layers_of(testing::network_of_sizes(weights, 1)); },
                ThrowsMessage<FormatError>(HasSubstr("two towers")));
}

TEST(NetworkSpec, AParameterOfNoLayerIsNamed) {
  StateDict dict = testing::small_alexnet(1);
  layers_of(dict);
  dict.parameters.insert(dict.parameters.begin(), {.name = "features.1.bias", .value = testing::random_tensor({3}, 1)});
  EXPECT_THAT([&] { layers_of(dict); },
              ThrowsMessage<FormatError>(HasSubstr("'features.1.bias', which AlexNet has not")));
}

TEST(NetworkSpec, AFreshAlexNetIsTheNotebooks) {
  const StateDict fresh = random_network(alexnet, 10, 3);
  const std::vector<std::pair<std::string, Shape>> expected = {
      {"features.0", {64, 3, 11, 11}},  {"features.3", {192, 64, 5, 5}},   {"features.6", {384, 192, 3, 3}},
      {"features.8", {256, 384, 3, 3}}, {"features.10", {256, 256, 3, 3}}, {"classifier.1", {4096, 9216}},
      {"classifier.4", {1024, 4096}},   {"classifier.6", {10, 1024}}};
  ASSERT_EQ(fresh.parameters.size(), 16U);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(fresh.parameters[2 * i].name, expected[i].first + ".weight");
    EXPECT_EQ(fresh.parameters[2 * i].shape(), expected[i].second);
    EXPECT_EQ(fresh.parameters[2 * i + 1].name, expected[i].first + ".bias");
  }
}

/// Fresh weights are a function of seed, name and shape alone and never change, so that old
/// training runs can be repeated. FNV-1a over the bits of all values.
TEST(NetworkSpec, AFreshAlexNetKeepsItsBits) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const Parameter& parameter : random_network(alexnet, 10, 3).parameters)
    for (const float value : parameter.values().view()) hash = (hash ^ std::bit_cast<uint32_t>(value)) * 0x100000001B3;
  EXPECT_EQ(hash, 0x7672865118EF8501);
}

TEST(NetworkSpec, ImageSizesAreTheNetworks) {
  StateDict dict = small_alexnet(1);
  EXPECT_EQ(image_size_of(dict), 224);
  dict.metadata[image_size_key] = "64";
  EXPECT_EQ(image_size_of(dict), 64);
  EXPECT_EQ(image_size_of(dict, 63), 63);
  for (const int refused : {1, 62, 4097})
    EXPECT_THAT([&] { image_size_of(dict, refused); }, ThrowsMessage<UsageError>(HasSubstr("63…4096"))) << refused;
  for (const char* refused : {"62", "4097", "", "64 ", "huge", "-64", "99999999999"}) {
    dict.metadata[image_size_key] = refused;
    EXPECT_THROW(image_size_of(dict), FormatError) << refused;
  }
}

TEST(DefaultSchemes, EveryWidthHasAValidOneForEveryLayer) {
  for (const NetworkSpec& network : networks())
    for (const DefaultSchemes* schemes : {network.schemes, network.calibrated_schemes})
      for (int bits = 2; bits <= 8; ++bits)
        for (const Shape& weight : {Shape{4, 3, 3, 3}, Shape{4, 3}}) {
          const Scheme scheme = default_scheme_of(*schemes, weight, bits);
          EXPECT_NO_THROW(validate(scheme)) << to_string(scheme);
          EXPECT_EQ(scheme.granularity.kind, Granularity::Kind::channel)
              << to_string(scheme) << ": a kernel has to expand scales that change along a filter";
          if (weight.rank() > 2)  // the convolutions, which hold few of the weights
            EXPECT_THAT(scheme.bits, AllOf(Ge(bits), Le(std::max(4, bits + 1)))) << to_string(scheme);
          else
            EXPECT_EQ(scheme.bits, bits) << to_string(scheme);
        }
  for (const int bits : {1, 9}) EXPECT_THROW(default_scheme_of(measured_schemes, {4, 3}, bits), UsageError);
}

/// Sources without their comments.
std::string code_of(const fs::path& file) {
  std::ifstream stream(file);
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  return std::regex_replace(text, std::regex("//[^\n]*"), "");
}

/// Only a network's own table knows its layers. "features.*" in the recipes of a sweep is a
/// pattern.
TEST(NetworkSpec, NoOtherFileKnowsALayersName) {
  const std::regex name("(features|classifier)\\.[0-9\\[*]");
  int files = 0;
  for (const char* folder : {"engine", "kernels", "layers", "training", "tools"})
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(NIBBLENET_SOURCES) / folder)) {
      const std::string path = fs::relative(entry.path(), NIBBLENET_SOURCES).string();
      const std::string ending = entry.path().extension().string();
      if (ending != ".h" && ending != ".cpp" && ending != ".cu" && ending != ".cuh") continue;
      ++files;
      const bool table =
          path.starts_with("layers/network/") && std::ranges::any_of(networks(), [&](const NetworkSpec& network) {
            return entry.path().stem() == network.name;
          });
      if (table || path == "tools/study/plan.cpp") continue;
      EXPECT_FALSE(std::regex_search(code_of(entry.path()), name)) << path;
    }
  EXPECT_GT(files, 150);
}

}  // namespace
}  // namespace nibblenet
