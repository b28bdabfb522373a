#include <fmt/format.h>

#include <csignal>

#include "tests/tools/run.h"

// The two tasks of a forward pass, the folded first convolution, and comparisons.

namespace nibblenet::testing {
namespace {

class TimingTest : public ToolsTest {};

TEST_F(TimingTest, StartsFromBytesWhenAsked) {
  for (const auto& [flags, task, folded] : {std::tuple{"", "T224", false},
                                            {"--task T32", "T32", true},
                                            {"--fold-first", "T32", true},
                                            {"--task T32 --no-fold-first", "T32", false}}) {
    const Outcome outcome =
        succeed(fmt::format("bench small.safetensors --batch 2 --seconds 0 {} --json out.json", flags));
    EXPECT_EQ(json("out.json").at("task"), task);
    EXPECT_EQ(json("out.json").at("first_folded"), folded);
    EXPECT_EQ(outcome.out.find(", folded; cold") != std::string::npos, folded) << outcome;
  }
  refuse("bench small.safetensors --fold-first --no-fold-first", "--no-fold-first", 2);
}

/// A bound is the longer of a layer's operations at the peak of their type and its bytes at the
/// bandwidth.
TEST_F(TimingTest, SetsLayersBesideTheirBounds) {
  for (const bool folded : {false, true}) {
    const Outcome outcome = succeed(fmt::format(
        "bench small.safetensors --batch 1,2 --seconds 0 --verbose {} --json out.json", folded ? "--task T32" : ""));
    for (const char* word : {"ceilings: ", "GB/s", "layer alone", "bound ms", "classifier.1", "features.10+pool"})
      EXPECT_NE(outcome.out.find(word), std::string::npos) << word << outcome;
    const nlohmann::json report = json("out.json"), ceilings = report.at("ceilings");
    ASSERT_EQ(report.at("results").size(), 2U);
    for (const nlohmann::json& result : report.at("results")) {
      EXPECT_EQ(result.at("routes").size(), 8U);
      const nlohmann::json layers = result.at("layers");
      ASSERT_EQ(layers.size(), folded ? 10U : 11U) << "eight products and three pools; a folded one is not timed alone";
      EXPECT_EQ(layers[0].at("name"), folded ? "features.0+pool" : "features.0");
      for (const nlohmann::json& layer : layers) {
        const double peak = ceilings.at(layer.at("precision").get<std::string>() + "_teraflops");
        const double products = layer.at("flops").get<double>() / peak / 1e9;
        const double bytes = layer.at("bytes").get<double>() / ceilings.at("gigabytes_per_second").get<double>() / 1e6;
        EXPECT_NEAR(layer.at("bound_ms"), std::max(products, bytes), 1e-9 + 1e-6 * (products + bytes)) << layer;
        EXPECT_EQ(layer.at("bound_by"), products >= bytes ? "products" : "bytes") << layer;
        EXPECT_GT(layer.at("warm_ms"), 0.0);
      }
    }
  }
  succeed("bench small.safetensors --batch 1 --seconds 0 --json out.json");
  EXPECT_FALSE(json("out.json").contains("ceilings")) << "they take time";
  const nlohmann::json result = json("out.json").at("results")[0];
  EXPECT_EQ(result.at("samples_ms").size(), result.at("samples"));
  EXPECT_TRUE(result.at("device").is_null()) << "the CPU has no clock of its own";
  refuse("bench small.safetensors --compare --prefixes", "--prefixes", 2);
}

/// Too many patterns of source pixels: folding would save nothing.
TEST_F(TimingTest, FoldsOnlyWhereThatSavesWork) {
  StateDict dict = model("small.safetensors");
  dict.metadata["image_size"] = "80";  // each of 19 x 19 outputs meets the pixels in its own way
  save_state_dict(at("uneven.safetensors"), dict);
  refuse("bench uneven.safetensors --batch 2 --seconds 0 --fold-first", "saves nothing", 2);
  succeed("bench uneven.safetensors --batch 2 --seconds 0 --task T32 --json out.json");
  EXPECT_EQ(json("out.json").at("task"), "T32");
  EXPECT_EQ(json("out.json").at("first_folded"), false);
}

TEST_F(TimingTest, ComparesPrecisions) {
  succeed(
      "bench small.safetensors --compare --sides float32,linear:4:channel+int8,linear:4:channel+bfloat16+fold "
      "--batch 2 --seconds 0 --rounds 1 --device cpu --threads 2 --json out.json");
  const nlohmann::json sides = json("out.json").at("sides");
  ASSERT_EQ(sides.size(), 3U);
  EXPECT_EQ(sides[0].at("activations"), "float32");
  EXPECT_EQ(sides[1].at("activations"), "int8");
  EXPECT_EQ(sides[2].at("activations"), "bfloat16");
  EXPECT_EQ(sides[2].at("first_folded"), true);
  EXPECT_GT(sides[1].at("relative_error"), 0.0);
}

TEST_F(TimingTest, ComparesSidesInBothTasksAndLayerByLayer) {
  const Outcome outcome = succeed(
      "bench small.safetensors --compare --sides float32,linear:3:channel,float32+fold --batch 2 --seconds 0 "
      "--rounds 2 --device cpu --threads 2 --data standin --limit 20 --json out.json");
  for (const char* word :
       {"ceilings", "GB/s", "TFLOP/s", "float32+fold", "T224", "T32", "cold", "spread", "layers alone, batch 2: "})
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word << outcome;
  const nlohmann::json report = json("out.json"), sides = report.at("sides");
  EXPECT_GT(report.at("ceilings").at("gigabytes_per_second"), 0.1);
  EXPECT_GT(report.at("ceilings").at("float32_teraflops"), 1e-4);
  EXPECT_TRUE(report.at("ceilings").at("float16_teraflops").is_null()) << "the CPU has none";
  ASSERT_EQ(sides.size(), 3U);
  for (const nlohmann::json& side : sides) {
    const bool folded = side.at("first_folded");
    EXPECT_EQ(side.at("results").size(), folded ? 2U : 4U) << "tasks x caches";
    EXPECT_EQ(side.at("layers").size(), folded ? 0U : 11U) << "eight products and three pools";
    for (const nlohmann::json& result : side.at("results")) {
      EXPECT_GT(result.at("median_ms"), 0.0);
      EXPECT_GE(result.at("spread"), 0.0);
      EXPECT_EQ(result.at("rounds").size(), 2U);
      EXPECT_TRUE(result.at("operations").is_null()) << "the CPU records nothing";
    }
    for (const nlohmann::json& layer : side.at("layers")) {
      EXPECT_GT(layer.at("warm_ms"), 0.0);
      EXPECT_GT(layer.at("bound_ms"), 0.0);
    }
  }
  EXPECT_EQ(report.at("images"), 20);
  EXPECT_EQ(sides[0].at("relative_error"), 0.0);
  EXPECT_NEAR(sides[0].at("accuracy"), sides[2].at("accuracy"), 0.11) << "the resize alone is rounded differently";
  EXPECT_GT(sides[1].at("relative_error"), 0.01) << "three bits";
  EXPECT_LT(sides[2].at("relative_error"), 0.01) << "the rounding of resized pixels";
  EXPECT_GT(sides[2].at("relative_error"), 0.0);
  EXPECT_GT(sides[0].at("weight_bytes").get<int64_t>(), 4 * small_weights);
  EXPECT_LT(sides[1].at("weight_bytes").get<int64_t>(), 2 * small_weights);
}

TEST_F(TimingTest, AStoppedComparisonKeepsTheBatchSizesThatWereDone) {
  Child child(command("bench small.safetensors --compare --sides float32 --batch 1,2,1024 --seconds 0 "
                      "--rounds 1 --device cpu --threads 1 --json cut.json"),
              at(""), environment_, at(".cut").string());
  ASSERT_TRUE(child.wait_for("T32      2   cold")) << child.wait();
  child.send(SIGINT);
  EXPECT_EQ(child.wait().code, 130);
  const nlohmann::json report = json("cut.json");
  EXPECT_EQ(report.at("sides")[0].at("results")[0].at("batch"), 1);
}

/// Runs performance_tables.py on out.json and on what else is given.
class TablesTest : public TimingTest {
 protected:
  void SetUp() override {
    TimingTest::SetUp();
    if (!std::filesystem::exists("/usr/bin/python3")) GTEST_SKIP() << "there is no Python";
    environment_.emplace_back("PYTHONDONTWRITEBYTECODE=1");
    succeed(
        "bench small.safetensors --compare --sides linear:3:channel --batch 2 --seconds 0 --rounds 1 "
        "--device cpu --data standin --limit 20 --json out.json");
  }
  Outcome make_tables(const std::vector<std::string>& options) const {
    std::vector<std::string> words = {"/usr/bin/python3", NIBBLENET_SOURCE "/tests/peers/performance_tables.py",
                                      "out.json"};
    words.insert(words.end(), options.begin(), options.end());
    return Child(words, at(".").parent_path(), environment_, at(".run").string()).wait();
  }
};

TEST_F(TablesTest, ReplaceTheMarkedPartOfAPage) {
  write_text(at("page.md"), "before\n<!-- compared: begin -->\noutdated\n<!-- compared: end -->\nafter\n");
  const Outcome outcome = make_tables({"--note", "of a test", "--docs", "page.md"});
  EXPECT_EQ(outcome.code, 0) << outcome;
  const std::string page = read_text(at("page.md"));
  EXPECT_TRUE(page.starts_with("before\n<!-- compared: begin -->\n")) << page;
  EXPECT_TRUE(page.ends_with("\n<!-- compared: end -->\nafter\n")) << page;
  EXPECT_EQ(page.find("outdated"), std::string::npos);
  for (const char* part : {"of a test", "accuracy, %", "### T224, from prepared images to logits, caches cold",
                           "| linear:3:channel |", "### Layers alone, batch 2", "| classifier.1 | linear:3:channel |"})
    EXPECT_NE(page.find(part), std::string::npos) << part << "\n" << page;
  write_text(at("page.md"), "no marks\n");
  EXPECT_NE(make_tables({"--docs", "page.md"}).code, 0);
  EXPECT_EQ(read_text(at("page.md")), "no marks\n");
}

TEST_F(TablesTest, ComeWithThePlotsThatThereAreFiguresFor) {
  if (!std::filesystem::exists("/usr/bin/gnuplot")) GTEST_SKIP() << "there is no gnuplot";
  write_text(at("compiled.txt"), "90a  4 bits: linear 1.12 (designed 1.13, at most 1.30), others 1.88\n");
  write_text(at("finetune.json"), R"({"device": "cpu", "options": {"batch": 8}, "epochs":
                                      [{"seconds": 2, "test_accuracy": 0.5}, {"seconds": 2, "test_accuracy": 0.6}]})");
  const Outcome outcome = make_tables({"finetune.json", "--compiled", "compiled.txt", "--plots", "plots"});
  EXPECT_EQ(outcome.code, 0) << outcome;
  for (const char* name : {"images_t32", "layers_2", "instructions", "accuracy_size", "accuracy_latency", "training"}) {
    const std::string plot = fmt::format("performance_{}.svg", name);
    EXPECT_NE(read_text(at("plots/" + plot)).find("</svg>"), std::string::npos) << name;
    EXPECT_NE(outcome.out.find(plot), std::string::npos) << name;
  }
  for (const char* name : {"bits", "fc1_speed", "energy", "operations"}) {
    EXPECT_FALSE(std::filesystem::exists(at(fmt::format("plots/performance_{}.svg", name)))) << name;
    EXPECT_NE(outcome.err.find(fmt::format("performance_{} is not drawn: it needs ", name)), std::string::npos) << name;
  }
  nlohmann::json report = json("out.json");
  EXPECT_TRUE(report["sides"][0]["results"][0].at("joules_per_image").is_null()) << "nobody counts a CPU's";
  report["sides"][0]["results"][0]["joules_per_image"] = 0.002;
  write_text(at("out.json"), report.dump());
  make_tables({"--plots", "plots"});
  EXPECT_TRUE(std::filesystem::exists(at("plots/performance_energy.svg")));
}

TEST_F(TimingTest, RefusesSidesThatCannotBe) {
  refuse("bench small.safetensors --compare --sides float8", "float8", 2);
  refuse("bench small.safetensors --compare --sides float32+int8", "behind a scheme", 2);
  refuse("bench small.safetensors --compare --precision int8", "--precision", 2);
  refuse("bench small.safetensors --compare --device cpu --sides cudnn:float16+fold", "does not fold", 2);
  refuse("bench small.safetensors --compare --device cpu --sides float16", "the CPU computes in float32", 2);
  refuse("bench small.safetensors --sides float32", "--compare", 2);
  refuse("bench small.safetensors --data standin", "--compare", 2);
  succeed("pack small.safetensors");
  refuse("bench small_4bit.safetensors --compare --device cpu", "small_4bit.safetensors is packed", 2);
}

TEST_F(TimingTest, FoldsTheFirstConvolutionOfTheModelThatIsAskedFor) {
  const std::string line = "eval small.safetensors --data standin --limit 40 ";
  succeed(line + "--json plain.json --logits plain.st");
  const Outcome outcome =
      succeed(line + "--fold-first --compare small.safetensors --json folded.json --logits folded.st");
  EXPECT_NE(outcome.out.find("folded"), std::string::npos) << outcome;
  const nlohmann::json plain = json("plain.json"), folded = json("folded.json");
  EXPECT_EQ(plain.at("first_folded"), false);
  EXPECT_EQ(folded.at("first_folded"), true);
  EXPECT_EQ(folded.at("compared_with").at("loss"), plain.at("loss")) << "the other model is not folded";
  const double largest = folded.at("compared_with").at("largest_logit_difference");
  EXPECT_GT(largest, 0.0);
  EXPECT_LT(largest, 0.1);
  EXPECT_GT(folded.at("size").at("resident"), plain.at("size").at("resident"));
  EXPECT_NE(read_text(at("plain.st")), read_text(at("folded.st")));
}

}  // namespace
}  // namespace nibblenet::testing
