#include <fmt/format.h>

#include <type_traits>

#include "tests/engine/io/io_helpers.h"
#include "tests/tools/inference_only_backend.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

constexpr int most_functions = 25;

int occurrences(const std::string& text, const std::string& word) {
  int count = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + word.size())) ++count;
  return count;
}

/// That InferenceOnlyBackend is no abstract class, the compiler checks.
TEST(InferenceOnlyBackend, HasAtMostTwentyFiveFunctionsToWrite) {
  const std::string source = read_text(NIBBLENET_SOURCE "/tests/tools/inference_only_backend.h");
  const int functions = occurrences(source, " override {");
  EXPECT_EQ(functions, occurrences(source, "override"));
  EXPECT_GT(functions, 0);
  EXPECT_LE(functions, most_functions);
  std::cout << "a backend that only infers writes " << functions << " functions\n";
  const std::string guide = read_text(NIBBLENET_SOURCE "/CONTRIBUTING.md");
  EXPECT_NE(guide.find(fmt::format("{} pure functions are enough to infer", functions)), std::string::npos);
}

TEST(InferenceOnlyBackend, RefusesToTrainInOneLine) {
  static_assert(!std::is_base_of_v<Training, InferenceOnlyBackend>);
  InferenceOnlyBackend backend(1);
  try {
    backend.training();
    FAIL() << "it has gradients";
  } catch (const UsageError& error) {
    EXPECT_STREQ(error.what(),
                 "--device inference-only runs forward passes only and has no gradients; use --device cpu");
  }
  CpuBackend cpu(1);
  Backend& trains = cpu;
  EXPECT_EQ(&trains.training(), &cpu);
}

class InferenceOnlyTools : public ToolsTest {
 protected:
  void SetUp() override {
    ToolsTest::SetUp();
    succeed("pack small.safetensors --bits 4 -o packed.safetensors");
    for (uint8_t i = 0; i < 6; ++i) {
      Bytes rgb(32 * 32 * 3);
      for (size_t k = 0; k < rgb.size(); ++k) rgb[k] = static_cast<uint8_t>(k * (i + 3U) / 7U);
      write_bytes(at(fmt::format("pictures/{}.png", i)), png(32, 32, rgb));
    }
  }

  /// The same command in both builds of the tools. Both give the same bits: the operations are the
  /// same.
  void expect_same(const std::string& line, const std::string& file) {
    SCOPED_TRACE(line);
    tools_ = NIBBLENET_TOOLS;
    succeed(line + " --device cpu");
    const std::string expected = results(file);
    tools_ = NIBBLENET_INFERENCE_ONLY_TOOLS;
    EXPECT_NE(succeed(line).out.find("forward passes of CPU"), std::string::npos);
    EXPECT_EQ(results(file), expected);
  }

 private:
  std::string results(const std::string& file) const {
    return file.ends_with(".json") ? json(file).at("results").dump() : read_text(at(file));
  }
};

TEST_F(InferenceOnlyTools, EvalAndClassifyGiveWhatTheCpuGives) {
  for (const std::string model : {"small.safetensors", "packed.safetensors"}) {
    expect_same("eval " + model + " --data standin --logits logits.safetensors", "logits.safetensors");
    expect_same("classify pictures --no-fold-first --model " + model + " --json found.json", "found.json");
  }
}

TEST_F(InferenceOnlyTools, WhatItLacksIsAnErrorInOneLine) {
  tools_ = NIBBLENET_INFERENCE_ONLY_TOOLS;
  refuse("finetune --data standin --init small.safetensors --image-size 64 --epochs 1 --out tuned.safetensors",
         "has no gradients", 2);
  EXPECT_FALSE(std::filesystem::exists(at("tuned.safetensors")));
  refuse("eval small.safetensors --data standin --fold-first", "does not fold", 2);
  succeed("classify pictures --model small.safetensors --json out.json");
  EXPECT_EQ(json("out.json").at("first_folded"), false);
}

}  // namespace
}  // namespace nibblenet::testing
