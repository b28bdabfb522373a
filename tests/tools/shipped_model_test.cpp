#include "engine/io/dataset.h"
#include "engine/quant/size.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

/// The model that lies in weights/, alone in a project of its own.
class ShippedModelTest : public ToolsTest {
 protected:
  void SetUp() override {
    ToolsTest::SetUp();
    fs::create_directory(at("weights"));
    fs::copy(fs::path(NIBBLENET_SOURCE) / shipped, at(shipped));
  }
  static constexpr const char* shipped = "weights/alexnet-cifar10.safetensors";
};

TEST_F(ShippedModelTest, IsWholeAndSmall) {
  EXPECT_LT(fs::file_size(at(shipped)), 2'000'000U);
  succeed(std::string("inspect --verify ") + shipped);
  const StateDict dict = model(shipped);
  for (const Parameter& parameter : dict.parameters)
    EXPECT_EQ(parameter.packed(), parameter.shape().rank() > 1) << parameter.name;
  int64_t resident = 0;
  for (const Parameter& parameter : dict.parameters)
    resident +=
        parameter.packed() ? resident_size(parameter.packed_values()).total() : 4 * parameter.shape().elements();
  EXPECT_LT(resident, 3'000'000);
}

/// Which kernel computes features.6, packed with 4 bits, without a GPU.
TEST_F(ShippedModelTest, SaysWhichKernelsWouldComputeIt) {
  const auto features_6 = [&](const std::string& options) {
    succeed("inspect --routes --json out.json " + options + " packed.safetensors");
    const nlohmann::json routes = json("out.json").at("routes");
    EXPECT_EQ(routes.size(), 8U);
    return routes.at(2);
  };
  succeed(std::string("export --output floats.safetensors ") + shipped);
  succeed("pack --bits 4 floats.safetensors -o packed.safetensors");
  const nlohmann::json one = features_6("");
  EXPECT_EQ(one.at("layer"), "features.6");
  EXPECT_EQ(one.at("kernel"), "few_pixels");
  EXPECT_TRUE(one.at("expansion").is_null());
  EXPECT_EQ(features_6("--batch 128").at("kernel"), "wgmma_unpacked");
  EXPECT_EQ(features_6("--batch 128 --gpu sm_80").at("kernel"), "mma");
  EXPECT_EQ(features_6("--precision float32").at("kernel"), "plain");
  EXPECT_EQ(features_6("--image-size 640").at("kernel"), "wgmma_unpacked");
  // Scales that change along a filter have to be expanded first.
  succeed("pack --bits 4 --layer features.*=nf4:4:block:16:f16 floats.safetensors -o packed.safetensors --force");
  EXPECT_EQ(features_6("--force").at("expansion"), "weight_superblocks");
  EXPECT_EQ(features_6("--force --batch 128 --gpu sm_80").at("kernel"), "plain");
}

TEST_F(ShippedModelTest, ClassifiesAPictureWithoutBeingNamed) {
  write_bytes(at("grey.png"), png(32, 32, Bytes(size_t{32} * 32 * 3, 128)));
  const Outcome outcome = succeed("classify grey.png --json out.json");
  EXPECT_NE(outcome.out.find(shipped), std::string::npos) << outcome;
  const nlohmann::json top = json("out.json").at("results")[0].at("top");
  for (const nlohmann::json& guess : top)
    EXPECT_EQ(guess.at("class"), cifar10_classes()[guess.at("label").get<size_t>()]);
}

}  // namespace
}  // namespace nibblenet::testing
