#include "tools/study/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace nibblenet::tools {
namespace {

using ::testing::ElementsAre;
using ::testing::IsSupersetOf;

std::vector<std::string> names(const std::vector<SweepScheme>& schemes) {
  std::vector<std::string> result;
  for (const SweepScheme& scheme : schemes) result.push_back(to_string(scheme));
  return result;
}

std::vector<std::string> parsed(const std::vector<std::string>& lists) { return names(parse_scheme_lists(lists)); }

TEST(Plan, ListsKeepTheirOrderAndNameEachSchemeOnce) {
  EXPECT_THAT(parsed({"linear:4:tile:8x8,simulated-dynamic-tree:4", "linear,linear:4:channel,nf4:4:block:16:f16"}),
              ElementsAre("linear:4:tile:8x8", "simulated-dynamic-tree:4", "linear:4:channel", "nf4:4:block:16:f16"));
  EXPECT_THAT(parsed({"dynamic-tree:3:row:absolute,dynamic-tree:3:row:signed"}),
              ElementsAre("dynamic-tree:3:row:absolute", "dynamic-tree:3:row"));
  EXPECT_THAT(parsed({" linear:4:row ,  nf4 , pack  --bits 3  "}),
              ElementsAre("linear:4:row", "nf4:4:block:64", "pack --bits 3"));
}

TEST(Plan, ListsThatMakeNoSenseAreRefused) {
  for (const std::string list : {"", ",", "linear:4,", "linear:9", "simulated-linear:3", "simulated-magic", "lin:4",
                                 "dynamic-tree:3:sorted", "linear:4 3", "linear:4, ,linear:3", " "})
    EXPECT_THROW(parse_scheme_lists(std::vector{list}), UsageError) << list;
  EXPECT_THROW(preset_schemes("most", networks().front()), UsageError);
}

TEST(Plan, TheNotebooksPresetIsTheNotebooksSet) {
  std::vector<std::string> expected = {"simulated-linear:8",       "simulated-linear-row:8",
                                       "simulated-fp8:8",          "simulated-stable-embedding:8",
                                       "linear:8:tensor",          "linear:8:row",
                                       "linear:8:channel",         "linear:8:tile:8x8",
                                       "fp8-e4m3:8:row",           "stable-embedding:8:sorted:absolute",
                                       "stable-embedding:8:sorted"};
  for (int bits = 3; bits <= 8; ++bits)
    for (const char* form : {"simulated-dynamic-tree:{}", "dynamic-tree:{}:row:absolute", "dynamic-tree:{}:row"})
      expected.push_back(fmt::format(fmt::runtime(form), bits));
  EXPECT_THAT(names(preset_schemes("notebooks", networks().front())), ::testing::UnorderedElementsAreArray(expected));
}

TEST(Plan, TheFullPresetHasEveryMethodAtEveryWidthOnce) {
  const std::vector<std::string> full = names(preset_schemes("full", networks().front()));
  EXPECT_THAT(full, IsSupersetOf(names(preset_schemes("notebooks", networks().front()))));
  EXPECT_EQ(std::set(full.begin(), full.end()).size(), full.size());
  for (const MethodTraits& traits : method_table())
    for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits)
      EXPECT_THAT(full, IsSupersetOf({nibblenet::to_string(default_scheme(traits.method, bits))}));
}

TEST(Plan, TheFrontierPresetIsPacksDefaultsAndMixedWidths) {
  const std::vector<std::string> frontier = names(preset_schemes("frontier", networks().front()));
  for (int bits = 2; bits <= 8; ++bits) {
    EXPECT_THAT(frontier, IsSupersetOf({fmt::format("pack --bits {}", bits)}));
    if (bits > 6) continue;  // nothing is left for a calibration to gain
    EXPECT_THAT(frontier, IsSupersetOf({fmt::format("pack --bits {} --calibrated", bits)}));
  }
  EXPECT_THAT(frontier, IsSupersetOf({"pack --bits 4 --calibrated --layer classifier.[14]=kmeans:2"}));
  EXPECT_EQ(std::set(frontier.begin(), frontier.end()).size(), frontier.size());
}

TEST(Plan, EverySchemeReadsAsItIsWrittenAndHasAFileOfItsOwn) {
  std::set<std::string> files;
  size_t packed = 0;
  for (const SweepScheme& scheme : preset_schemes("frontier", networks().front())) {
    EXPECT_EQ(parse_sweep_scheme(to_string(scheme)), scheme);
    files.insert(model_file_name(std::get<Recipe>(scheme)));
    ++packed;
  }
  for (const SweepScheme& scheme : preset_schemes("full", networks().front())) {
    EXPECT_EQ(parse_sweep_scheme(to_string(scheme)), scheme);
    if (!std::holds_alternative<Scheme>(scheme)) continue;
    files.insert(model_file_name(std::get<Scheme>(scheme)));
    ++packed;
  }
  EXPECT_EQ(files.size(), packed);
}

TEST(Plan, FilesBearTheNotebooksNames) {
  EXPECT_EQ(model_file_name(parse_scheme("dynamic-tree:3:row:absolute")), "dt_quantized_model_bl_3.safetensors");
  EXPECT_EQ(model_file_name(parse_scheme("dynamic-tree:3:row:signed")), "dynamic-tree_3_row.safetensors");
  EXPECT_EQ(model_file_name(parse_scheme("dynamic-tree:3:channel:absolute")),
            "dynamic-tree_3_channel_absolute.safetensors");
  EXPECT_EQ(model_file_name(parse_scheme("linear:2:tile:8x8:f16:zero-point")),
            "linear_2_tile_8x8_f16_zero-point.safetensors");
  EXPECT_EQ(model_file_name(parse_recipe("pack --bits 4 --calibrated --layer classifier.[14]=kmeans:2")),
            "pack_bits_4_calibrated_layer_classifier._14_kmeans_2.safetensors");
  EXPECT_EQ(counts_file_name(8), "dt_counts_bl_8.json");
}

/// The weights of torchvision's AlexNet with the original notebooks' classifier.
const std::vector<Shape> alexnet = {{64, 3, 11, 11},  {192, 64, 5, 5}, {384, 192, 3, 3}, {256, 384, 3, 3},
                                    {256, 256, 3, 3}, {4096, 9216},    {1024, 4096},     {10, 1024}};

EstimatedSize claimed_by(const std::string& scheme) {
  EstimatedSize total;
  for (const Shape& shape : alexnet) {
    const EstimatedSize size = claimed_size(parse_simulated_scheme(scheme), shape);
    total.codes += size.codes;
    total.scales += size.scales;
  }
  return total;
}

TEST(Plan, ClaimsAreTheNotebooksFormula) {
  EXPECT_DOUBLE_EQ(claimed_by("simulated-dynamic-tree:8").codes, 44'421'824);
  EXPECT_DOUBLE_EQ(claimed_by("simulated-dynamic-tree:3").codes, 16'658'184);
  for (const char* scheme : {"simulated-dynamic-tree:5", "simulated-fp8:8", "simulated-linear-row:8"})
    EXPECT_DOUBLE_EQ(claimed_by(scheme).scales, 3'125'544) << scheme;
  EXPECT_DOUBLE_EQ(claimed_by("simulated-linear:8").scales, 8 * 4);
  // Slices of a kernel have as many rows as columns; the three matrices 9216, 4096 and 1024 blocks.
  EXPECT_DOUBLE_EQ(claimed_by("simulated-stable-embedding:8").scales, 3'125'544 + 4 * (9216 + 4096 + 1024 - 5130));
}

TEST(Plan, CounterpartsHaveTheClaimedBits) {
  for (const SimulationTraits& traits : simulation_table())
    for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits) {
      const SimulatedScheme scheme = parse_simulated_scheme(fmt::format("{}:{}", traits.name, bits));
      const std::vector<Scheme> others = counterparts(scheme);
      ASSERT_FALSE(others.empty()) << traits.name;
      for (const Scheme& other : others) EXPECT_EQ(other.bits, bits);
      EXPECT_EQ(others.front().sign, ScaleSign::absolute) << "the notebooks' maxima come first";
    }
}

}  // namespace
}  // namespace nibblenet::tools
