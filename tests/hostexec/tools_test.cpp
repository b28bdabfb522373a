#include <fmt/format.h>
#include <gmock/gmock.h>

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
    for (const nlohmann::json& result : side.at("results"))
      EXPECT_GE(result.at("operations"), 7) << "products, all in one recording";
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

TEST_F(CudaTools, TheScriptThatChecksAGpuGoesThroughAllItsSteps) {
  std::filesystem::create_directory(at("bin"));
  for (const char* tool : {"bench", "eval", "pack", "export"})
    std::filesystem::create_symlink(std::filesystem::path(NIBBLENET_TOOLS) / tool, at("bin") / tool);
  write_script("bin/gpu_tests",
               "for word; do [[ $word != *json:* ]] || echo '{\"tests\": 0}' >\"${word#*json:}\"; done");
  write_script("bin/nvidia-smi", "echo 'No GPU, 0.0, 0 MHz, 0 MHz, 0 W, 0'");
  succeed("pack small.safetensors --bits 8 --device cpu -o 8bit.safetensors");
  const auto set = [&](const char* name, const std::string& value) {
    environment_.push_back(fmt::format("{}={}", name, value));
  };
  set("PATH", at("bin").string() + ":/usr/bin:/bin");
  set("GPU_BIN", at("bin").string());
  set("GPU_MODEL", at("8bit.safetensors").string());
  set("GPU_DATA", at("few").string());
  set("GPU_SIDES", "float16,cudnn:float16");
  set("GPU_BATCHES", "1");
  set("GPU_SECONDS", "1500");
  set("GPU_SANITIZER", "");
  const std::string script = NIBBLENET_SOURCE "/tests/gpu/run.sh";
  const Outcome outcome =
      Child({script, at("results").string()}, at("").parent_path(), environment_, at(".run").string()).wait();
  EXPECT_EQ(outcome.code, 0) << outcome << read_text(at("results/gpu.log"));
  const nlohmann::json report = json("results/gpu.json");
  EXPECT_EQ(report.at("failures"), 0);
  EXPECT_EQ(report.at("tests").at("tests"), 0);
  for (const char* model : {"float", "4bit"})
    for (const char* device : {"cuda", "cpu", "cudnn"})
      EXPECT_EQ(report.at(fmt::format("eval-{}-{}", model, device)).at("images"), 3);
  EXPECT_EQ(report.at("compare").at("sides").size(), 2U);
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
