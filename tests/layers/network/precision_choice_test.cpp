#include "layers/network/precision_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "layers/network/input_range.h"
#include "tests/support/narrow_backend.h"
#include "tests/support/small_network.h"

namespace nibblenet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::NarrowBackend;
using testing::pack_all;
using testing::small_alexnet;

constexpr Precision int8 = Precision::int8, bfloat16 = Precision::bfloat16, float32 = Precision::float32;

StateDict packed_model(const char* scheme = "linear:4:channel") {
  StateDict dict = small_alexnet(1);
  pack_all(dict, parse_scheme(scheme));
  return dict;
}

/// Divergences below 0: none.
StateDict measured_model(double of_int8, double of_bfloat16, const char* scheme = "linear:4:channel") {
  StateDict dict = packed_model(scheme);
  if (of_int8 >= 0) set_divergence(dict.metadata, int8, {of_int8, 500});
  if (of_bfloat16 >= 0) set_divergence(dict.metadata, bfloat16, {of_bfloat16, 500});
  for (const LayerSpec& layer : layers_of(dict))
    if (layer.has_parameters()) set_input_range(dict.metadata, layer.name, 3.0F);
  return dict;
}

Precision automatic(const StateDict& dict, const std::vector<Precision>& fast) {
  return choose_precision("auto", NarrowBackend(fast), dict).precision;
}

TEST(PrecisionChoice, DivergencesAreReadAsTheyWereWritten) {
  std::map<std::string, std::string> metadata;
  for (const auto& [nats, text] : std::vector<std::pair<double, std::string>>{{0.000123456, "0.000123"},
                                                                              {0.0000024, "0.00000240"},
                                                                              {0.5, "0.500"},
                                                                              {12.3456, "12.3"},
                                                                              {1234, "1234"},
                                                                              {0, "0"}}) {
    set_divergence(metadata, int8, {nats, 500});
    EXPECT_EQ(metadata.at("divergence:int8"), text);
    EXPECT_EQ(metadata.at("divergence:images"), "500");
    EXPECT_NEAR(divergence_of(metadata, int8)->nats, nats, 0.005 * nats);
    EXPECT_EQ(divergence_of(metadata, int8)->images, 500);
  }
  EXPECT_FALSE(divergence_of(metadata, bfloat16));
}

TEST(PrecisionChoice, BrokenDivergencesAreRefused) {
  for (const char* text : {"", "nan", "inf", "-1", "1e-4x", " 1", "none", "1e999"}) {
    SCOPED_TRACE(text);
    EXPECT_THROW(divergence_of({{"divergence:int8", text}, {"divergence:images", "500"}}, int8), FormatError);
  }
  for (const char* text : {"", "0", "-500", "many", "500.5", "99999999999999999999"}) {
    SCOPED_TRACE(text);
    EXPECT_THROW(divergence_of({{"divergence:int8", "0.1"}, {"divergence:images", text}}, int8), FormatError);
  }
  EXPECT_THROW(divergence_of({{"divergence:int8", "0.1"}}, int8), FormatError);
}

TEST(PrecisionChoice, AutoTakesTheFastestWithinTheLimit) {
  const std::vector<Precision> both = {int8, bfloat16};
  EXPECT_EQ(automatic(measured_model(0.0005, 0.0001), both), int8);
  EXPECT_EQ(automatic(measured_model(0.000501, 0.0001), both), bfloat16);
  EXPECT_EQ(automatic(measured_model(0.000501, 0.000501), both), float32);
  EXPECT_EQ(automatic(measured_model(-1, 0.0001), both), bfloat16);
  EXPECT_EQ(automatic(measured_model(-1, -1), both), float32) << "nothing was measured";
  EXPECT_EQ(automatic(measured_model(0.0001, 0.0001), {bfloat16}), bfloat16);
  EXPECT_EQ(automatic(measured_model(0.001, 0.0001), {int8}), float32) << "bfloat16 is slow there";
  StateDict floats = dequantized(measured_model(0, 0));
  EXPECT_EQ(automatic(floats, both), float32) << "divergences are those of packed weights";
}

TEST(PrecisionChoice, ADefaultReadsNoMetadata) {
  StateDict dict = measured_model(0, 0);
  dict.metadata["divergence:int8"] = "nan";
  EXPECT_EQ(choose_precision("", NarrowBackend({int8}), dict).precision, float32);
  EXPECT_THROW(choose_precision("auto", NarrowBackend({int8}), dict), FormatError);
  EXPECT_THROW(choose_precision("int8", NarrowBackend({int8}), dict), FormatError);
}

TEST(PrecisionChoice, WhatTheBackendDoesNotComputeInIsRefused) {
  const StateDict dict = packed_model();
  EXPECT_THROW(choose_precision("float16", NarrowBackend({}), dict), UsageError);
  EXPECT_THROW(choose_precision("int4", NarrowBackend({}), dict), UsageError);
  EXPECT_EQ(choose_precision("bfloat16", NarrowBackend({}), dict).precision, bfloat16) << "slow, but asked for";
}

TEST(PrecisionChoice, ItsLinesSayWhatRunsAndWhatItCosts) {
  NarrowBackend backend({int8, bfloat16});
  const auto lines = [&](std::string_view asked, StateDict dict) {
    const PrecisionChoice choice = choose_precision(asked, backend, dict);
    const Network network(backend, std::move(dict), choice.precision);
    return precision_lines(choice, network);
  };
  EXPECT_THAT(lines("auto", measured_model(0.00012, 0)),
              ElementsAre("int8: divergence 0.000120 from float32 on 500 training images"));
  EXPECT_THAT(lines("auto", measured_model(0.003, 0.000002)),
              ElementsAre("int8 was passed over: its divergence 0.00300 is above 0.0005",
                          "bfloat16: divergence 0.00000200 from float32 on 500 training images"));
  EXPECT_THAT(lines("int8", packed_model()), ElementsAre(HasSubstr("was not measured"), HasSubstr("no input ranges")));
  EXPECT_THAT(lines("auto", packed_model()), IsEmpty());
  EXPECT_THAT(lines("float32", measured_model(0, 0)), IsEmpty());
  StateDict mixed = measured_model(0.0001, 0);
  mixed.at("features.3.weight").value = packed_model("nf4:4:block:16").at("features.3.weight").packed_values();
  EXPECT_THAT(lines("auto", std::move(mixed)),
              ElementsAre(HasSubstr("divergence"), "int8: other precisions in features.3 (bfloat16)"));
}

TEST(PrecisionChoice, DemandedInt8ListsTheLayersThatCannot) {
  NarrowBackend backend({int8});
  const auto check = [&](std::string_view asked, StateDict dict) {
    const PrecisionChoice choice = choose_precision(asked, backend, dict);
    const Network network(backend, std::move(dict), choice.precision);
    expect_demanded(choice, network);
  };
  check("int8", packed_model());
  StateDict dict = measured_model(0.0001, 0);
  dict.at("features.3.weight").value = packed_model("nf4:4:block:16").at("features.3.weight").packed_values();
  dict.at("classifier.6.weight").value = small_alexnet(1).at("classifier.6.weight").dequantized();
  check("auto", copy_of(dict));
  try {
    check("int8", std::move(dict));
    FAIL() << "two layers cannot";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("features.3 (its scales change along a channel)"));
    EXPECT_THAT(error.what(), HasSubstr("classifier.6 (its weights are not packed)"));
    EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("features.0")));
    EXPECT_THAT(error.what(), HasSubstr("--precision auto"));
  }
}

/// The layers of an AlexNet whose inputs have 127 steps.
std::vector<std::string> halved_layers(const char* scheme, bool ranges = true) {
  StateDict dict = testing::even_alexnet(1);
  pack_all(dict, parse_scheme(scheme));
  for (const LayerSpec& layer : layers_of(dict))
    if (ranges && layer.has_parameters()) set_input_range(dict.metadata, layer.name, 3.0F);
  halve_input_steps(dict);
  std::vector<std::string> layers;
  for (const LayerSpec& layer : layers_of(dict))
    if (layer.has_parameters() && input_range(dict.metadata, layer.name, true).steps == 127)
      layers.push_back(layer.name);
  EXPECT_EQ(restore_input_steps(dict.metadata), !layers.empty());
  EXPECT_EQ(input_range(dict.metadata, "features.3", true).steps, 255);
  return layers;
}

TEST(PrecisionChoice, InputsOfFilteredConvolutionsGet127Steps) {
  for (const char* scheme : {"linear:4:channel", "linear:6:channel", "kmeans:4:channel:f16", "kmeans:2:channel"})
    EXPECT_THAT(halved_layers(scheme), ElementsAre("features.3", "features.6", "features.8", "features.10")) << scheme;
  for (const char* scheme : {"linear:8:channel", "nf4:4:channel", "linear:4:block:16", "trellis:2"})
    EXPECT_THAT(halved_layers(scheme), IsEmpty()) << scheme;
  EXPECT_THAT(halved_layers("linear:4:channel", false), IsEmpty());
}

TEST(PrecisionChoice, OtherCodesForgetWhatWasMeasured) {
  StateDict dict = measured_model(0.1, 0.1);
  set_input_steps(dict.metadata, "features.3", 127);
  dict.metadata["image_size"] = "64";
  forget_precisions(dict.metadata);
  EXPECT_EQ(dict.metadata, (std::map<std::string, std::string>{{"image_size", "64"}}));
}

}  // namespace
}  // namespace nibblenet
