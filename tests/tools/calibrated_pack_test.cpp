#include <fmt/format.h>

#include "layers/network/input_range.h"
#include "layers/network/precision_choice.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"
#include "tools/training/precision_report.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

class CalibratedPackTest : public ToolsTest {};

TEST_F(CalibratedPackTest, TakesItsOwnDefaultsLowersTheErrorAndSaysHowInTheFile) {
  succeed("pack small.safetensors --bits 3 --calibrate standin --calibration-images 50 --json out.json");
  const StateDict packed = model("small_3bit.safetensors");
  for (const Parameter& parameter : packed.parameters)
    if (parameter.packed()) {
      EXPECT_EQ(parameter.packed_values().scheme, default_scheme_of(measured_calibrated_schemes, parameter.shape(), 3))
          << parameter.name;
    }
  const std::map<std::string, std::string> expected = {{"rounding", "compensated"},  {"range", "search"},
                                                       {"column_order", "natural"},  {"refinements", "2"},
                                                       {"calibration_images", "50"}, {"calibration_positions", "64"},
                                                       {"calibration_seed", "1"},    {"calibration_image_size", "64"}};
  for (const auto& [key, value] : expected) EXPECT_EQ(packed.metadata.at(key), value) << key;
  EXPECT_TRUE(packed.metadata.at("calibration_data").ends_with(", train"));
  EXPECT_EQ(packed.metadata.at("calibration_fingerprint").size(), 16U);

  const nlohmann::json layers = json("out.json").at("gptq");
  ASSERT_EQ(layers.size(), 8U);
  for (const nlohmann::json& layer : layers)
    EXPECT_LT(layer.at("error").get<double>(), layer.at("nearest_error").get<double>()) << layer;
  succeed("eval small_3bit.safetensors --data standin");
  succeed("inspect small_3bit.safetensors --verify");
}

TEST_F(CalibratedPackTest, ASavedCalibrationGivesTheSameFile) {
  const std::string options = "pack small.safetensors --method linear --bits 2 --range search --column-order diagonal ";
  succeed(options + "--calibrate standin --calibration-images 40 --save-calibration c.safetensors -o a.safetensors");
  succeed(options + "--calibration c.safetensors --data standin -o b.safetensors");
  EXPECT_EQ(read_text(at("a.safetensors")), read_text(at("b.safetensors")));
  EXPECT_EQ(model("b.safetensors").metadata.at("calibration_images"), "40");
  refuse("pack seven.safetensors --calibration c.safetensors", "another model", 2);
  write_text(at("cut.safetensors"), read_text(at("c.safetensors")).substr(0, 5000));
  refuse("pack small.safetensors --calibration cut.safetensors", "cut.safetensors", 1);
  refuse("pack small.safetensors --calibration small.safetensors", "no calibration", 1);
}

/// What pack's JSON says of divergences, and whether the file holds the same.
void expect_divergences(const nlohmann::json& report, const StateDict& packed, int64_t images) {
  for (const Precision precision : {Precision::int8, Precision::bfloat16}) {
    SCOPED_TRACE(to_string(precision));
    const auto divergence = divergence_of(packed.metadata, precision);
    ASSERT_TRUE(divergence);
    EXPECT_EQ(divergence->images, images);
    const double reported = report.at("divergence").at(std::string(to_string(precision))).get<double>();
    EXPECT_GT(reported, 0);
    EXPECT_NEAR(divergence->nats, reported, 0.005 * reported);
  }
  EXPECT_TRUE(report.at("not_measured").is_null());
  EXPECT_EQ(report.at("images"), images);
}

TEST_F(CalibratedPackTest, MeasuresWhatNarrowPrecisionsCost) {
  const Outcome outcome = succeed(
      "pack small.safetensors --method linear --bits 4 --calibrate standin --calibration-images 50 --json c.json "
      "--card card.md -o packed.safetensors");
  const StateDict packed = model("packed.safetensors");
  for (const LayerSpec& layer : layers_of(packed))
    if (layer.has_parameters()) {
      EXPECT_GT(input_range(packed.metadata, layer.name, true).largest, 0) << layer.name;
    }
  expect_divergences(json("c.json").at("precisions"), packed, 150);  // the others of 200
  EXPECT_NE(outcome.out.find("divergence from float32: "), std::string::npos) << outcome;
  EXPECT_EQ(read_text(at("card.md")).find("input_range:"), std::string::npos) << "a card is for people";

  // Other codes have other divergences, and no range without a calibration.
  succeed("export packed.safetensors -o floats.safetensors");
  succeed("pack floats.safetensors --bits 4 -o again.safetensors --json again.json");
  for (const char* file : {"floats.safetensors", "again.safetensors"})
    for (const auto& [key, value] : model(file).metadata) {
      EXPECT_FALSE(key.starts_with("input_") || key.starts_with("divergence:")) << file << ": " << key;
    }
  EXPECT_TRUE(json("again.json").at("precisions").is_null());
  succeed("pack small.safetensors --bits 4 --data standin -o data.safetensors --json data.json");
  expect_divergences(json("data.json").at("precisions"), model("data.safetensors"), 200);
}

TEST_F(CalibratedPackTest, HalvesTheStepsOfFilteredInputs) {
  StateDict dict = even_alexnet(1);
  dict.metadata["image_size"] = "64";
  save_state_dict(at("even.safetensors"), dict);
  succeed("pack even.safetensors --bits 4 --calibrate standin --calibration-images 50 -o even_4.safetensors");
  const StateDict packed = model("even_4.safetensors");
  ASSERT_LE(divergence_of(packed.metadata, Precision::int8)->nats, most_divergence);
  for (const char* layer : {"features.3", "features.6", "features.8", "features.10"})
    EXPECT_EQ(packed.metadata.at(fmt::format("input_steps:{}", layer)), "127");
  succeed("eval even_4.safetensors --data standin --precision int8");

  // They keep them where int8 costs no more than the limit, here of all and of nothing.
  for (const double largest : {1e9, 0.0}) {
    StateDict measured = model("even_4.safetensors");
    const auto backend = make_backend("cpu", 2);
    tools::measure_and_describe(measured, {.images = load_dataset(at("standin"), Split::train, 20), .missing = {}},
                                *backend, largest);
    EXPECT_EQ(measured.metadata.contains("input_steps:features.3"), largest > 0);
    EXPECT_EQ(input_range(measured.metadata, "features.3", true).largest,
              input_range(packed.metadata, "features.3", true).largest);
    EXPECT_EQ(divergence_of(measured.metadata, Precision::int8)->images, 20);
  }
}

TEST_F(CalibratedPackTest, SaysWhyNothingWasMeasured) {
  const std::string pack = "pack small.safetensors --method linear --json p.json -o packed.safetensors ";
  const auto reason = [&] { return json("p.json").at("precisions").at("not_measured").get<std::string>(); };
  const Outcome all = succeed(pack + "--calibrate standin");
  EXPECT_NE(all.out.find("on all training images"), std::string::npos) << all;
  EXPECT_NE(reason().find("--calibration-images"), std::string::npos);
  fs::create_directory(at("half"));
  for (const char* name : {"test_batch.bin", "batches.meta.txt"}) fs::copy(at("standin") / name, at("half") / name);
  succeed(pack + "--data half");
  EXPECT_NE(reason().find("no training images"), std::string::npos);
  EXPECT_FALSE(model("packed.safetensors").metadata.contains("divergence:images"));
  refuse(pack + "--data missing", "--data missing", 2);
}

TEST_F(CalibratedPackTest, TestImagesAreUsedWithAWarningOnly) {
  fs::create_directory(at("half"));
  for (const char* name : {"test_batch.bin", "batches.meta.txt"}) fs::copy(at("standin") / name, at("half") / name);
  const Outcome outcome = succeed("pack small.safetensors --calibrate half -o packed.safetensors");
  EXPECT_NE(outcome.err.find("warning: half has only a test split"), std::string::npos) << outcome;
  EXPECT_TRUE(model("packed.safetensors").metadata.at("calibration_data").ends_with(", test"));
  const Outcome quiet = succeed("pack small.safetensors --calibrate standin -o packed.safetensors");
  EXPECT_EQ(quiet.err.find("warning"), std::string::npos) << quiet;
  fs::create_directory(at("hollow"));
  refuse("pack small.safetensors --calibrate hollow", "hollow", 1);
  refuse("pack small.safetensors --calibrate missing", "missing", 2);
}

TEST_F(CalibratedPackTest, StepsAndRatesMakeASmallerCompressedFile) {
  const std::string options =
      "pack small.safetensors --method linear --bits 6 --calibrate standin --calibration-images 40 --compress ";
  succeed(options + "--range step:0.5 -o plain.safetensors");
  succeed(options + "--range step:0.5 --range classifier.*=step:1 --rate-weight 1.4 -o rated.safetensors");
  EXPECT_LT(fs::file_size(at("rated.safetensors")), fs::file_size(at("plain.safetensors")));
  const StateDict plain = model("plain.safetensors"), rated = model("rated.safetensors");
  EXPECT_EQ(plain.metadata.at("range"), "step:0.5");
  EXPECT_EQ(rated.metadata.at("range"), "step:0.5, classifier.*=step:1");
  EXPECT_EQ(rated.metadata.at("rate_weight"), "1.4");
  EXPECT_FALSE(plain.metadata.contains("rate_weight"));
  EXPECT_EQ(rated.metadata.at("refinements"), "0");
  EXPECT_EQ(plain.metadata.at("refinements"), "2, and 0 where ranges go by step");
  const auto scale = [](const StateDict& dict, const char* name) { return dict.at(name).packed_values().scale(0); };
  EXPECT_EQ(scale(rated, "features.0.weight"), scale(plain, "features.0.weight"));
  EXPECT_FLOAT_EQ(scale(rated, "classifier.1.weight"), 2 * scale(plain, "classifier.1.weight"));
}

TEST_F(CalibratedPackTest, RefusesOptionsThatDoNotGoTogether) {
  const std::vector<std::pair<std::string, std::string>> flags = {
      {"--rounding gptq", "--calibrate"},
      {"--rounding up", "--rounding"},
      {"--range min", "--range"},
      {"--method linear --range step:0", "step:X"},
      {"--method linear --range step:1.5x", "step:X"},
      {"--method linear --range =step:1", "step:X"},
      {"--method linear --range nothing=step:1", "nothing=step:1"},
      {"--method kmeans --range step:1", "has no ranges by step"},
      {"--method linear --rate-weight 1", "--rate-weight"},
      {"--calibrate standin --rate-weight -1", "--rate-weight"},
      {"--column-order random", "--column-order"},
      {"--column-order diagonal", "--column-order"},
      {"--passes 1", "--passes"},
      {"--calibrate standin --passes -1", "--passes"},
      {"--save-calibration c.safetensors", "--calibrate"},
      {"--calibration-images 10", "--calibrate"},
      {"--calibrate standin --calibration c.safetensors", "--calibrat"},
      {"--calibrate standin --calibration-images -1", "--calibration-images"},
      {"--calibrate standin --calibration-images 5", "5 images"},
      {"--calibrate standin --layer nothing=linear:4", "--layer nothing"}};
  for (const auto& [flag, mention] : flags) refuse("pack small.safetensors " + flag, mention, 2);
  EXPECT_FALSE(fs::exists(at("small_4bit.safetensors")));
}

TEST_F(CalibratedPackTest, WithoutACalibrationTheRangeIsSearchedOnTheWeightsAlone) {
  succeed("pack small.safetensors --method linear --bits 3 --range search -o searched.safetensors");
  succeed("pack small.safetensors --method linear --bits 3 -o plain.safetensors");
  const StateDict searched = model("searched.safetensors"), plain = model("plain.safetensors");
  EXPECT_EQ(searched.metadata.at("range"), "search");
  EXPECT_FALSE(plain.metadata.contains("range"));
  EXPECT_NE(searched.at("classifier.1.weight").packed_values().scales,
            plain.at("classifier.1.weight").packed_values().scales);
}

}  // namespace
}  // namespace nibblenet::testing
