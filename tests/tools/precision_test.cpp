#include <gmock/gmock.h>

#include "engine/io/dataset.h"
#include "kernels/backend.h"
#include "layers/network/input_range.h"
#include "layers/network/precision_choice.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

/// --precision of the tools, on the CPU.
class PrecisionTest : public ToolsTest {
 protected:
  void SetUp() override {
    ToolsTest::SetUp();
    write_bytes(at("a.png"), png(32, 32, Bytes(32 * 32 * 3, 77)));
    succeed(
        "pack small.safetensors --method linear --bits 8 --granularity channel --calibrate standin "
        "--calibration-images 50 -o channel.safetensors");
    succeed(
        "pack small.safetensors --method linear --bits 4 --granularity channel --layer features.3=nf4:4:block:16 "
        "-o mixed.safetensors");
  }

  static bool has_fast(Precision precision) { return make_backend("cpu", 0)->has_fast(precision); }

  /// A copy of a model whose metadata have this divergence in int8, but none in bfloat16.
  void write_with(const std::string& from, const std::string& to, const std::string& divergence) const {
    StateDict dict = model(from);
    dict.metadata.erase("divergence:bfloat16");
    dict.metadata["divergence:int8"] = divergence;
    dict.metadata["divergence:images"] = "500";
    save_state_dict(at(to), dict);
  }

  /// The JSON of a tool that succeeds, and what it printed.
  std::pair<nlohmann::json, std::string> report(const std::string& line) const {
    const Outcome outcome = succeed(line + " --json out.json");
    return {json("out.json"), outcome.out};
  }
};

TEST_F(PrecisionTest, EvalComparesInt8WithFloatsInFloat32) {
  const auto [json, text] =
      report("eval channel.safetensors --data standin --precision int8 --compare small.safetensors");
  EXPECT_EQ(json.at("precision"), "int8");
  EXPECT_EQ(json.at("compared_with").at("precision"), "float32");
  const auto [floats, plain] = report("eval small.safetensors --data standin");
  EXPECT_EQ(json.at("compared_with").at("loss"), floats.at("loss"));
}

TEST_F(PrecisionTest, EvalMeasuresInFloat32UnlessAsked) {
  const auto [floats, plain] = report("eval channel.safetensors --data standin");
  EXPECT_EQ(floats.at("precision"), "float32");
  EXPECT_TRUE(floats.at("divergence").is_null());
  EXPECT_THAT(plain, Not(HasSubstr("divergence")));
  for (const char* name : {"int8", "bfloat16"}) {
    SCOPED_TRACE(name);
    const auto [narrow, text] = report(std::string("eval channel.safetensors --data standin --precision ") + name);
    EXPECT_EQ(narrow.at("precision"), name);
    for (const auto& [layer, precision] : narrow.at("layer_precisions").items()) EXPECT_EQ(precision, name) << layer;
    EXPECT_NE(narrow.at("loss"), floats.at("loss"));
    EXPECT_NEAR(narrow.at("loss").get<double>(), floats.at("loss").get<double>(), 0.05);
    EXPECT_EQ(narrow.at("divergence_images"), 150);
    EXPECT_THAT(text, HasSubstr(std::string(name) + ": divergence 0"));
  }
}

TEST_F(PrecisionTest, ClassifyAndBenchTakeTheFastestThatCostsLittle) {
  write_with("channel.safetensors", "little.safetensors", "0.0005");
  write_with("channel.safetensors", "much.safetensors", "0.0006");
  const std::string classify = "classify a.png --model ", bench = "bench --batch 1 --seconds 0 ";
  for (const std::string& tool : {classify, bench}) {
    SCOPED_TRACE(tool);
    const auto [little, text] = report(tool + "little.safetensors");
    if (has_fast(Precision::int8)) {
      EXPECT_EQ(little.at("precision"), "int8");
      EXPECT_EQ(little.at("divergence"), 0.0005);
      EXPECT_THAT(text, HasSubstr("int8: divergence 0.000500 from float32 on 500 training images\n"));
    }
    const auto [much, why] = report(tool + "much.safetensors");
    EXPECT_EQ(much.at("precision"), "float32");
    EXPECT_THAT(why, HasSubstr("int8 was passed over: its divergence 0.000600 is above 0.0005\n"));
    EXPECT_EQ(report(tool + "small.safetensors").first.at("precision"), "float32") << "nothing was measured";
    EXPECT_EQ(report(tool + "little.safetensors --precision float32").first.at("precision"), "float32");
  }
  environment_.emplace_back("NIBBLENET_MAX_ISA=portable");
  const auto [portable, why] = report(classify + "little.safetensors");
  EXPECT_EQ(portable.at("precision"), "float32");
  EXPECT_THAT(why, HasSubstr("int8 was passed over: this processor has no instructions for it\n"));
}

TEST_F(PrecisionTest, LayersThatCannotAreListedOrTakeAnother) {
  write_with("mixed.safetensors", "divergent.safetensors", "0.0001");
  const std::string reason = "features.3 (its scales change along a channel)";
  refuse("eval mixed.safetensors --data standin --precision int8", reason, 2);
  refuse("bench mixed.safetensors --precision int8", reason, 2);
  refuse("classify a.png --model mixed.safetensors --precision int8", reason, 2);
  refuse("classify a.png --model small.safetensors --precision int8", "classifier.6 (its weights are not packed)", 2);
  refuse("classify a.png --model small.safetensors --precision float16", "--precision float16", 2);
  refuse("classify a.png --model small.safetensors --precision int4", "--precision", 2);
  if (!has_fast(Precision::int8)) return;
  const auto [mixed, text] = report("eval divergent.safetensors --data standin --precision auto --verbose");
  EXPECT_EQ(mixed.at("precision"), "int8");
  EXPECT_NE(mixed.at("layer_precisions").at("features.3"), "int8");
  EXPECT_EQ(mixed.at("layer_precisions").at("features.6"), "int8");
  EXPECT_THAT(text, AllOf(HasSubstr("int8: other precisions in features.3 ("), HasSubstr("no input ranges"),
                          HasSubstr("  features.6     int8, ")));
}

TEST_F(PrecisionTest, BrokenMetadataAreOneLine) {
  for (const char* text : {"nan", "-1", "little", "1e-4 ", "inf"}) {
    SCOPED_TRACE(text);
    write_with("channel.safetensors", "broken.safetensors", text);
    refuse("classify a.png --model broken.safetensors", "divergence:int8", 1);
    refuse("eval broken.safetensors --data standin --precision int8", "divergence:int8", 1);
    succeed("eval broken.safetensors --data standin");  // does not look
  }
  for (const char* key : {"input_range:features.3", "input_steps:features.3"}) {
    StateDict dict = model("channel.safetensors");
    dict.metadata[key] = "-nan";
    save_state_dict(at("broken.safetensors"), dict);
    refuse("classify a.png --model broken.safetensors", key, 1);
  }
}

TEST_F(PrecisionTest, ASweepHasOneForAllRows) {
  const std::string sweep = "sweep small.safetensors --data standin ";
  succeed(sweep + "--schemes linear:8:channel,simulated-linear:8 --precision int8 --out narrow --json narrow.json");
  succeed(sweep + "--schemes linear:8:channel --out plain --json plain.json");
  const auto row = [&](const std::string& file, const std::string& scheme) {
    const nlohmann::json report = json(file);
    for (const nlohmann::json& each : report.at("results"))
      if (each.at("scheme") == scheme) return each;
    ADD_FAILURE() << file << " has no row " << scheme;
    return nlohmann::json();
  };
  EXPECT_EQ(row("narrow.json", "float32").at("loss"), row("plain.json", "float32").at("loss"));
  EXPECT_NE(row("narrow.json", "linear:8:channel").at("loss"), row("plain.json", "linear:8:channel").at("loss"));
  refuse(sweep + "--schemes linear:8:channel --precision float32 --out narrow", "another --precision", 2);
  for (const char* scheme : {"linear:4:block:64", "nf4:4:row", "stable-embedding:4"})
    refuse(sweep + "--precision int8 --out other --schemes linear:8:channel," + scheme, scheme, 2);
  succeed(sweep + "--schemes linear:8:channel --precision int8 --out shards --shard 1/1");
  succeed("sweep --merge --out shards --json merged.json");
  EXPECT_EQ(row("merged.json", "linear:8:channel").at("loss"), row("narrow.json", "linear:8:channel").at("loss"));
}

}  // namespace
}  // namespace nibblenet::testing
