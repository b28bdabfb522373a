#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "tests/tools/run.h"

// Every block of commands in the documents runs, on the stand-in's images and a small network, with
// numbers that take seconds. limited.sh lists what stands in for what cannot run here.

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

/// The document's blocks marked sh, in their order.
std::vector<std::string> shell_blocks(const std::string& document) {
  std::vector<std::string> blocks;
  std::istringstream lines(document);
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("```")) {
      inside = line == "```sh";
      if (inside) blocks.emplace_back();
    } else if (inside) {
      blocks.back() += line + "\n";
    }
  }
  return blocks;
}

/// The project's documents that have such a block.
std::vector<std::string> documents() {
  std::vector<std::string> paths;
  const fs::path root = NIBBLENET_SOURCE;
  for (const char* folder : {"", "docs", "weights", "tests/house", "tests/peers"})
    for (const auto& entry : fs::directory_iterator(root / folder))
      if (entry.path().extension() == ".md" && !shell_blocks(read_text(entry.path())).empty())
        paths.push_back((folder / entry.path().filename()).string());
  std::ranges::sort(paths);
  return paths;
}

class Documents : public ToolsTest, public ::testing::WithParamInterface<std::string> {
 protected:
  void SetUp() override {
    ToolsTest::SetUp();
    const fs::path source = NIBBLENET_SOURCE, stand_in = source / "tests/tools/documents/limited.sh";
    for (const char* folder : {"tools", "weights", "bin", "build/peers/bin", "tests/gpu", "docs/images"})
      fs::create_directories(at(folder));
    for (const char* tool :
         {"finetune", "prune", "pack", "eval", "sweep", "inspect", "export", "bench", "classify", "dev"})
      fs::create_symlink(stand_in, at("tools") / tool);
    for (const char* program :
         {"bin/python3", "build/peers/bin/python", "build/peers/bin/pip", "tests/gpu/compiled_code.sh"})
      fs::create_symlink(stand_in, at(program));
    const char* shipped = "weights/alexnet-cifar10.safetensors";
    fs::copy_file(source / shipped, at(shipped));
    fs::create_directory_symlink("standin", at("data"));
    if (GetParam() != "README.md") add_what_others_presume();
    environment_.insert(environment_.end(),
                        {"TOOLS=" + tools_, "SOURCE=" + source.string(), "SMALL=" + at("small.safetensors").string(),
                         "PATH=" + at("bin").string() + ":" + std::getenv("PATH"),
                         "LIMITS=--epochs=1 --train-limit=20 --limit=20 --calibration-images=20 --target-file=0.05 "
                         "--batch=10",
                         "ADDED=finetune:--train-limit=20 finetune:--test-limit=20 pack:--target-images=20 "
                         "sweep:--limit=20 eval:--limit=20 "
                         "bench:--seconds=0.01"});
  }

 private:
  /// The README's commands need a fresh checkout. Other documents name a user's images and models.
  void add_what_others_presume() const {
    for (const char* images : {"DATA", "HELD_OUT", "cifar10-jpeg.tar.gz"})
      fs::create_directory_symlink("standin", at(images));
    for (const char* model : {"MODEL", "FLOAT", "model.safetensors", "weights/model.safetensors"})
      fs::copy_file(at("small.safetensors"), at(model));
    succeed("pack MODEL --bits 2 --calibrate DATA --calibration-images 20 --save-calibration CALIBRATION -o PACKED");
    fs::copy_file(at("PACKED"), at("weights/trained_2bit.safetensors"));
    fs::copy_file(at("CALIBRATION"), at("calibration.safetensors"));
  }
};

TEST_P(Documents, CommandsRun) {
  for (const std::string& block : shell_blocks(read_text(fs::path(NIBBLENET_SOURCE) / GetParam()))) {
    const Outcome outcome =
        Child({"/bin/bash", "-euo", "pipefail", "-c", block}, at(""), environment_, at(".block").string()).wait();
    EXPECT_EQ(outcome.code, 0) << block << outcome;
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Documents, ::testing::ValuesIn(documents()), [](const auto& document) {
  std::string name = document.param.substr(0, document.param.rfind('.'));
  std::ranges::replace_if(
      name, [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
});

}  // namespace
}  // namespace nibblenet::testing
