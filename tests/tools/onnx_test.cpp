#include <fmt/format.h>

#include <algorithm>

#include "engine/io/dataset.h"
#include "engine/io/preprocess.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

class OnnxToolTest : public ToolsTest {
 protected:
  Outcome python(const std::string& script, const std::vector<std::string>& arguments = {}) const {
    write_text(at("check.py"), script);
    std::vector<std::string> words{"/usr/bin/env", "python3", "check.py"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return Child(words, at(""), {}, at(".python").string()).wait();
  }

  /// images.f32: the stand-in's test images as eval prepares them, [100, 3, 64, 64].
  void write_prepared_images() const {
    const Dataset images = load_dataset(at("standin"), Split::test);
    Preprocessor prepare(Preprocess::for_image_size(size));
    std::string bytes;
    std::vector<float> prepared(static_cast<size_t>(3 * size * size)), planes(prepared.size());
    for (const Dataset::Image& image : images.images) {
      prepare.run(images.pixels.data() + image.offset, image.width, image.height, false, prepared.data());
      for (size_t i = 0; i < prepared.size(); ++i) planes[i % 3 * prepared.size() / 3 + i / 3] = prepared[i];
      bytes.append(reinterpret_cast<const char*>(planes.data()), planes.size() * sizeof(float));
    }
    write_text(at("images.f32"), bytes);
  }

  static constexpr int size = 64;
};

/// Sums are rounded in another order there. The bound is about 80 units in the last place of the
/// largest logit.
TEST_F(OnnxToolTest, OnnxRuntimeComputesEvalsLogits) {
  if (python("import onnx, onnxruntime").code != 0)
    GTEST_SKIP() << "python3 with onnx and onnxruntime is not here: pip install onnx onnxruntime into a virtual "
                    "environment, and put its bin/ in front of PATH";
  write_prepared_images();
  std::vector<std::string> arguments;
  for (const char* flags :
       {"--bits 4", "--bits 8", "--bits 3", "--bits 6", "--method linear --bits 4 --zero-point --granularity tile:3x5",
        "--method linear --bits 4 --granularity block:32 --scale f16", "--method linear --bits 8 --granularity tensor",
        "--method linear --bits 8 --zero-point --granularity row --scale f16",
        "--method linear --bits 2 --granularity tile:8x8", "--method kmeans --bits 5 --granularity block:7",
        "--method dynamic-tree --bits 8 --granularity tile:4x64", "--method fp8-e4m3 --bits 8 --scale f16",
        "--method fp4 --bits 4"}) {
    const std::string name = fmt::format("packed{}", arguments.size());
    succeed(fmt::format("pack small.safetensors -o {}.safetensors {}", name, flags));
    arguments.push_back(name);
  }
  StateDict even = even_alexnet(1);  // with input channels that can be rotated
  even.metadata["image_size"] = "64";
  save_state_dict(at("even.safetensors"), even);
  for (const char* flags : {"--method linear --bits 4 --rotate", "--method trellis --bits 2 --rotate"}) {
    const std::string name = fmt::format("packed{}", arguments.size());
    succeed(fmt::format("pack even.safetensors -o {}.safetensors {}", name, flags));
    arguments.push_back(name);
  }
  arguments.emplace_back("small");
  for (const std::string& name : arguments) {
    succeed(fmt::format("export {}.safetensors --to onnx", name));
    succeed(fmt::format("eval {0}.safetensors --data standin --logits {0}.logits --threads 1", name));
  }
  const Outcome outcome = python(R"(
import json, sys
import numpy as np, onnx, onnxruntime
images = np.fromfile("images.f32", "<f4").reshape(100, 3, 64, 64)
for name in sys.argv[1:]:
    onnx.checker.check_model(name + ".onnx", full_check=True)
    raw = open(name + ".logits", "rb").read()
    start = 8 + int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8:start])["logits"]["data_offsets"]
    expected = np.frombuffer(raw[start + begin:start + end], "<f4").reshape(100, -1)
    for batch in 100, 1:
        session = onnxruntime.InferenceSession(name + ".onnx", providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], {"images": images[:batch]})[0]
        error = np.abs(logits - expected[:batch]).max() / np.abs(expected).max()
        print(name, batch, error)
        assert logits.shape == expected[:batch].shape and error < 1e-5, (name, batch, error)
)",
                                 arguments);
  EXPECT_EQ(outcome.code, 0) << outcome;
  EXPECT_EQ(std::ranges::count(outcome.out, '\n'), static_cast<int64_t>(2 * arguments.size())) << outcome;
}

TEST_F(OnnxToolTest, TheLedgerStandsBesideIt) {
  succeed("pack small.safetensors --method linear --bits 3 -o packed.safetensors");
  const Outcome outcome = succeed("export packed.safetensors --to onnx --json out.json");
  EXPECT_NE(outcome.out.find("INT4"), std::string::npos) << outcome;
  const nlohmann::json json = this->json("out.json");
  EXPECT_EQ(json.at("format"), "onnx");
  EXPECT_EQ(json.at("output"), "packed.onnx");
  EXPECT_EQ(json.at("opset"), 21);
  EXPECT_EQ(json.at("image_size"), 64);
  EXPECT_EQ(json.at("bytes"), fs::file_size(at("packed.onnx")));
  EXPECT_EQ(json.at("size").at("onnx"), json.at("bytes"));
  ASSERT_EQ(json.at("size").at("layers").size(), 8U);
  const nlohmann::json& layer = json.at("size").at("layers").at(5);  // classifier.1, 67 × 360
  EXPECT_EQ(layer.at("name"), "classifier.1");
  EXPECT_EQ(layer.at("stored_as"), "INT4");
  EXPECT_EQ(layer.at("onnx"), 67 * 360 / 2 + 67 * 4 + 67 * 4);  // codes, scales, biases
  succeed("eval packed.safetensors --data standin --limit 10 --json eval.json");
  EXPECT_EQ(json.at("size").at("resident"), this->json("eval.json").at("size").at("resident").at("total"));
}

TEST_F(OnnxToolTest, ItReplacesOnnxFilesAndNothingElse) {
  succeed("export small.safetensors --to onnx");
  const std::string first = read_text(at("small.onnx"));
  succeed("export small.safetensors --to onnx");
  EXPECT_EQ(read_text(at("small.onnx")), first);
  refuse("export small.safetensors --to onnx -o seven.safetensors", "seven.safetensors exists and holds a model", 2);
  refuse("export small.safetensors -o small.onnx", "small.onnx exists and holds an ONNX model", 2);
  refuse("eval small.onnx --data standin", "small.onnx", 1);
}

TEST_F(OnnxToolTest, SortedBlocksAreRefused) {
  succeed("pack small.safetensors --method stable-embedding -o sorted.safetensors");
  refuse("export sorted.safetensors --to onnx", "features.0.weight has the scheme stable-embedding:4:sorted: ONNX", 2);
  EXPECT_FALSE(fs::exists(at("sorted.onnx")));
}

TEST_F(OnnxToolTest, TheInputIsAsLargeAsAskedFor) {
  succeed("export small.safetensors --to onnx --image-size 96 --json out.json -o a.onnx");
  EXPECT_EQ(json("out.json").at("image_size"), 96);
  save_pth(at("small.pth"), model("small.safetensors"));  // it has no place for a size
  succeed("export small.pth --to onnx --json out.json -o b.onnx");
  EXPECT_EQ(json("out.json").at("image_size"), 224);
}

}  // namespace
}  // namespace nibblenet::testing
