#include <fmt/format.h>
#include <gmock/gmock.h>

#include <csignal>
#include <cstdlib>

#include "engine/io/dataset.h"
#include "tests/tools/run.h"

// The CUDA side of the tools, and the script that checks a GPU. Kernels run on the CPU, and
// stand-ins replace the baseline's libraries: the times mean nothing here, but all of the code
// runs.

namespace nibblenet::testing {
namespace {

using ::testing::HasSubstr;

class CudaTools : public ToolsTest {
 protected:
  void SetUp() override {
    ToolsTest::SetUp();
    environment_.emplace_back("NIBBLENET_CUDNN=" NIBBLENET_FAKE_CUDNN);
    environment_.emplace_back("NIBBLENET_CUBLASLT=" NIBBLENET_FAKE_CUDNN);
    environment_.emplace_back("NIBBLENET_NVML=" NIBBLENET_FAKE_NVML);
    write_standin(at("few"), 3, 3, 1);
  }

  void write_script(const std::string& name, const std::string& text) const {
    write_text(at(name), "#!/bin/bash\n" + text + "\n");
    std::filesystem::permissions(at(name), std::filesystem::perms::owner_all);
  }
};

TEST_F(CudaTools, ComparesOurKernelsWithTheBaseline) {
  const Outcome outcome = succeed(
      "bench small.safetensors --compare --device cuda --sides cudnn:float16,float16+fold,linear:4:channel "
      "--batch 1 --rounds 1 --seconds 0 --energy 0.01 --data few --json out.json");
  const nlohmann::json report = json("out.json"), sides = report.at("sides");
  EXPECT_TRUE(report.at("baseline").is_null()) << "it is not missing";
  EXPECT_EQ(report.at("images"), 3);
  for (const char* ceiling : {"gigabytes_per_second", "float32_teraflops", "float16_teraflops"})
    EXPECT_GT(report.at("ceilings").at(ceiling), 0.0) << ceiling;
  EXPECT_EQ(report.at("ceilings").at("chains").size(), 4U);
  ASSERT_EQ(sides.size(), 3U);
  for (const nlohmann::json& side : sides) {
    SCOPED_TRACE(side.at("side"));
    const bool folded = side.at("first_folded");
    EXPECT_EQ(side.at("results").size(), folded ? 2U : 4U);
    EXPECT_EQ(side.at("layers").size(), folded ? 0U : 11U);
    for (const nlohmann::json& result : side.at("results")) {
      EXPECT_GE(result.at("operations"), 7) << "products, all in one recording";
      EXPECT_EQ(result.at("device_ms").is_null(), result.at("task") == "T32") << result;
      EXPECT_EQ(result.at("device_rounds").size(), result.at("task") == "T32" ? 0U : 1U);
    }
    for (const nlohmann::json& result : side.at("results"))
      if (result.at("task") == "T224" && result.at("caches") == "warm")
        EXPECT_GT(result.at("joules_per_image"), 0.0);
      else
        EXPECT_TRUE(result.at("joules_per_image").is_null()) << result;
    EXPECT_LT(side.at("relative_error"), 0.5);
    EXPECT_GE(side.at("accuracy"), 0.0);
  }
  EXPECT_THAT(outcome.out, HasSubstr("suit bandwidths")) << "runs of a layer overlap";
  EXPECT_EQ(sides[0].at("engine"), "nibblenet, cudnn");
  EXPECT_LT(sides[1].at("relative_error"), 0.02) << "fp16, and the rounding of resized pixels";
}

TEST_F(CudaTools, TimesPassesByTheDevicesClockPrefixByPrefix) {
  const Outcome outcome =
      succeed("bench small.safetensors --device cuda --batch 1 --seconds 0 --prefixes --json out.json");
  const nlohmann::json report = json("out.json");
  EXPECT_EQ(report.at("state").at("driver"), "570.1");
  EXPECT_EQ(report.at("state").at("sm_mhz"), 1980);
  EXPECT_EQ(report.at("state").at("memory_mhz"), 3201);
  EXPECT_EQ(report.at("state").at("watts"), 0.0) << "this driver does not tell";
  EXPECT_EQ(report.at("state").at("celsius"), 42);
  ASSERT_EQ(report.at("results").size(), 1U);
  for (const nlohmann::json& result : report.at("results")) {
    EXPECT_FALSE(result.at("state").is_null());
    EXPECT_EQ(result.at("samples_ms").size(), result.at("samples"));
    for (const char* key : {"device", "cold_device"}) {
      EXPECT_EQ(result.at(key).at("samples_ms").size(), result.at(key).at("samples")) << key;
      EXPECT_GT(result.at(key).at("median_ms"), 0.0) << key;
    }
    const nlohmann::json prefixes = result.at("prefixes");
    ASSERT_EQ(prefixes.back().at("name"), "classifier.6");
    double before = 0, bytes = 0, flops = 0;
    int64_t operations = 0;
    for (const nlohmann::json& prefix : prefixes) {
      SCOPED_TRACE(prefix.dump());
      EXPECT_GT(prefix.at("operations"), operations);
      operations = prefix.at("operations");
      const double median = prefix.at("device").at("median_ms");
      EXPECT_NEAR(prefix.at("marginal_ms"), median - before, 1e-9);
      before = median;
      EXPECT_EQ(prefix.at("percent_of_bound").is_null(), prefix.at("marginal_ms") <= 0.0);
      bytes += prefix.at("bytes").get<double>();
      flops += prefix.at("flops").get<double>();
    }
    EXPECT_GT(bytes, 2.0 * small_weights) << "all weights, in float16";
    EXPECT_GT(flops, 2.0 * small_weights) << "each is used at least once an image";
  }
  EXPECT_NE(outcome.out.find("layers up to"), std::string::npos) << outcome;
  refuse("bench small.safetensors --device cuda --task T32 --prefixes", "--prefixes times T224", 2);
}

TEST_F(CudaTools, AComparisonGoesOnWithoutASideThatFails) {
  environment_.emplace_back("FAKE_CUDNN_FAILS=2");
  const std::string command = "bench small.safetensors --compare --device cuda --rounds 1 --seconds 0 --json out.json ";
  const Outcome outcome = succeed(command + "--sides cudnn:float16,linear:4:channel --batch 1,2");
  EXPECT_THAT(outcome.out, HasSubstr("cudnn:float16: not measured from here on: "));
  const nlohmann::json sides = json("out.json").at("sides");
  EXPECT_EQ(sides[0].at("results").size(), 4U) << "those of batch 1";
  EXPECT_THAT(sides[0].at("not_measured").get<std::string>(), HasSubstr("convolution"));
  EXPECT_EQ(sides[1].at("results").size(), 8U);
  EXPECT_TRUE(sides[1].at("not_measured").is_null());
  EXPECT_EQ(run(command + "--sides cudnn:float16 --batch 2").code, 1) << "no side is left";
}

/// The script that checks a GPU, on the host-execution build and a tiny network.
class GpuScript : public CudaTools {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "a run of many tools takes too long under a sanitizer; their own tests run there";
#endif
    CudaTools::SetUp();
    std::filesystem::create_directory(at("bin"));
    for (const char* tool : {"bench", "eval", "pack", "export", "finetune"})
      std::filesystem::create_symlink(std::filesystem::path(NIBBLENET_TOOLS) / tool, at("bin") / tool);
    // The smoke test of few_channels fails.
    write_script("bin/gpu_tests",
                 "for word; do [[ $word != *json:* ]] || echo \"{\\\"kernels\\\": \\\"$NIBBLENET_KERNELS\\\"}\" "
                 ">\"${word#*json:}\"; done; [[ $* != *smoke-few_channels* ]]");
    write_script("bin/nvidia-smi", "echo 'No GPU, 0.0, 0 MHz, 0 MHz, 0 W, 0'");
    succeed("pack small.safetensors --bits 4 --device cpu -o 4bit.safetensors");
    set("PATH", at("bin").string() + ":/usr/bin:/bin");
    set("GPU_BIN", at("bin").string());
    set("GPU_MODEL", at("4bit.safetensors").string());
    set("GPU_DATA", at("few").string());
    set("GPU_SIDES", "float16,cudnn:float16");
    set("GPU_BATCHES", "2");
    set("GPU_SAMPLING", "0");
    set("GPU_SECONDS", "1500");
    set("GPU_SANITIZER", "");
    set("GPU_TRAIN_OPTIONS",
        "--init small.safetensors --reset all --image-size 64 --batch 10 --train-limit 20 --test-limit 10");
  }

  void set(const std::string& name, const std::string& value) {
    std::erase_if(environment_, [&](const std::string& one) { return one.starts_with(name + "="); });
    environment_.push_back(fmt::format("{}={}", name, value));
  }
  std::unique_ptr<Child> start() const {
    const std::string script = NIBBLENET_SOURCE "/tests/gpu/run.sh";
    return std::make_unique<Child>(std::vector{script, at("results").string()}, at("").parent_path(), environment_,
                                   at(".run").string());
  }
  /// Files of the results, each of which is complete.
  std::vector<std::string> results() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(at("results"))) {
      names.push_back(entry.path().filename());
      if (entry.path().extension() == ".json") {
        EXPECT_NO_THROW(json("results/" + names.back())) << names.back();
      }
    }
    std::ranges::sort(names);
    return names;
  }
};

TEST_F(GpuScript, GoesThroughAllItsSteps) {
  const Outcome outcome = start()->wait();
  EXPECT_EQ(outcome.code, 1) << "a smoke test fails" << outcome << read_text(at("results/gpu.log"));
  const nlohmann::json report = json("results/gpu.json");
  EXPECT_EQ(report.at("failures"), 1) << report;
  EXPECT_EQ(report.at("ended"), "complete");
  EXPECT_EQ(report.at("left_out"), ",-few_channels");
  EXPECT_THAT(report.at("gpu").get<std::string>(), HasSubstr("No GPU"));
  for (const nlohmann::json& step : report.at("steps"))
    EXPECT_EQ(step.at("status") == "0", step.at("step") != "smoke: few_channels") << step;
  const nlohmann::json tests = json("results/tests.json");
  EXPECT_EQ(tests.at("smoke-few_rows").at("kernels"), "");
  EXPECT_EQ(tests.at("suite-1").at("kernels"), "fast,-few_channels");
  EXPECT_TRUE(tests.contains("suite-8"));
  for (const char* model : {"float", "4bit"})
    for (const char* device : {"cuda", "cpu", "cudnn"})
      EXPECT_EQ(tests.at(fmt::format("eval-{}-{}", model, device)).at("images"), 3);
  const nlohmann::json timings = json("results/timings.json");
  for (const char* model : {"float", "4bit"}) {
    const nlohmann::json first = timings.at(fmt::format("{}-first", model)).at("results")[0];
    EXPECT_GT(first.at("device").at("median_ms"), 0.0);
    EXPECT_EQ(first.at("prefixes").back().at("name"), "classifier.6");
    EXPECT_EQ(timings.at(fmt::format("{}-more", model)).at("results")[0].at("batch"), 2);
  }
  EXPECT_EQ(timings.at("training").at("epochs").size(), 1U);
  EXPECT_EQ(json("results/compare.json").at("sides").size(), 2U);
  EXPECT_THAT(outcome.out, HasSubstr("layers up to")) << "a table after a step";
  EXPECT_LE(results().size(), 8U);
}

/// What was measured when the run ends is there, however it ends.
TEST_F(GpuScript, LeavesWhatWasMeasuredWhenItIsCutOff) {
  for (const auto& [moment, signal] :
       {std::pair{"== smoke: mma", SIGTERM}, {"== 4bit, batch 2", SIGKILL}, {"== training", SIGTERM}}) {
    SCOPED_TRACE(moment);
    const auto script = start();
    ASSERT_TRUE(script->wait_for(moment)) << script->wait();
    script->send(signal);
    const Outcome outcome = script->wait();
    EXPECT_EQ(outcome.code, signal == SIGTERM ? 143 : -1) << outcome;
    const nlohmann::json report = json("results/gpu.json"), steps = report.at("steps");
    EXPECT_EQ(report.at("ended"), signal == SIGTERM ? "cut off" : "under way");
    ASSERT_FALSE(steps.empty());
    results();
    for (const nlohmann::json& step : steps) {
      const std::string name = step.at("step"), kernel = name.substr(name.find(' ') + 1);
      if (name.starts_with("smoke: ")) {
        EXPECT_TRUE(json("results/tests.json").contains("smoke-" + kernel)) << name;
      } else if (const auto comma = name.find(", batch "); comma != std::string::npos) {
        const std::string key = name.substr(0, comma) + (name.ends_with(" 1") ? "-first" : "-more");
        EXPECT_TRUE(json("results/timings.json").contains(key)) << name;
      }
    }
  }
}

/// Steps without time are no failures.
TEST_F(GpuScript, SaysWhatThereWasNoTimeFor) {
  set("GPU_SECONDS", "2");
  const Outcome outcome = start()->wait();
  EXPECT_EQ(outcome.code, 0) << outcome;
  const nlohmann::json report = json("results/gpu.json");
  EXPECT_EQ(report.at("ended"), "complete");
  ASSERT_FALSE(report.at("steps").empty());
  for (const nlohmann::json& step : report.at("steps")) EXPECT_EQ(step.at("status"), "no time left") << step;
}

/// Where nothing is installed, with an empty environment: it runs up to where a GPU is needed.
TEST_F(GpuScript, TheBundleRunsInAnEmptyFolder) {
  std::filesystem::create_directories(at("build/tests/gpu"));
  std::filesystem::create_directory_symlink(NIBBLENET_TOOLS, at("build/tools"));
  write_text(
      at("gpu_tests.c"),
      "#include <stdio.h>\nint main(void) { puts(\"[  SKIPPED ] every test, since there is no GPU\"); return 0; }");
  const std::string compiler = "cc -o " + at("build/tests/gpu/gpu_tests").string() + " " + at("gpu_tests.c").string();
  if (std::system(compiler.c_str()) != 0 || std::system("command -v xz strip ldd nm >/dev/null") != 0)
    GTEST_SKIP() << "there is no C compiler, xz or strip";
  const Outcome made = Child({NIBBLENET_SOURCE "/tests/gpu/bundle.sh", at("build").string(), at("bundle").string(),
                              at("4bit.safetensors").string(), ""},
                             at("").parent_path(), {"GPU_XZ=-0"}, at(".bundle").string())
                           .wait();
  ASSERT_EQ(made.code, 0) << made;
  const Outcome outcome =
      Child({"/usr/bin/env", "-i", "PATH=/usr/bin:/bin", at("bundle/run.sh").string()}, "/", {}, at(".run").string())
          .wait();
  EXPECT_EQ(outcome.code, 77) << outcome;
  EXPECT_FALSE(std::filesystem::exists(at("bundle/payload.tar.xz"))) << "it is unpacked";
  const nlohmann::json report = json("bundle/results/gpu.json");
  EXPECT_EQ(report.at("ended"), "no GPU");
  EXPECT_EQ(report.at("gpu"), "none");
  EXPECT_EQ(report.at("failures"), 0);
  EXPECT_EQ(report.at("commit").get<std::string>().size(), 40U);
}

/// A tiny network, two images a class. The second start goes on from the first one's checkpoint.
TEST_F(CudaTools, TheScriptThatTrainsGoesOnFromItsCheckpoint) {
  write_standin(at("images"), 20, 10, 1);
  const std::string script = NIBBLENET_SOURCE "/tests/gpu/train.sh";
  environment_.emplace_back("GPU_BIN=" NIBBLENET_TOOLS);
  environment_.emplace_back(
      "GPU_TRAIN_OPTIONS=--init small.safetensors --reset all --image-size 64 --freeze none --precision float16 "
      "--batch 10 --lr 0.01 --schedule warmup-cosine --augment flip-shift-cut --label-smoothing 0.1 --cutmix 1 "
      "--ema 0.9 --bias-lr 2 --seed 1 --validation");
  const auto train = [&](int epochs) {
    auto environment = environment_;
    environment.push_back(fmt::format("GPU_TRAIN_EPOCHS={}", epochs));
    return Child({script, at("images").string(), at("results").string()}, at("").parent_path(), environment,
                 at(".run").string())
        .wait();
  };
  for (const int epochs : {1, 2}) {
    const Outcome outcome = train(epochs);
    EXPECT_EQ(outcome.code, 0) << outcome << read_text(at("results/train.log"));
    EXPECT_EQ(json("results/train.json").at("epochs").size(), static_cast<size_t>(epochs));
    EXPECT_EQ(json("results/train.json").at("device"), "cuda");
    EXPECT_EQ(json("results/eval.json").at("mirror").at("loss").is_number(), true);
  }
  EXPECT_THAT(read_text(at("results/train.log")), HasSubstr("--resume " + at("results").string()));
}

}  // namespace
}  // namespace nibblenet::testing
