#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/core/random.h"
#include "engine/io/preprocess.h"
#include "layers/network/batch_norm.h"
#include "layers/network/pass.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"

namespace nibblenet {
namespace {

using testing::golden;
using testing::golden_folder;
using ::testing::HasSubstr;
using testing::logits_of;
using testing::pack_all;
using testing::random_tensor;
using testing::relative_error;
using testing::small_vgg16;
using ::testing::ThrowsMessage;
using testing::vgg16;

TEST(Vgg16, LayersAreTorchvisions) {
  const StateDict dict = small_vgg16(1);
  EXPECT_EQ(&network_of(dict), &vgg16);
  const std::vector<LayerSpec> layers = layers_of(dict);
  Shape shape{2, 224, 224, 3};
  for (const LayerSpec& layer : layers) {
    if (layer.kind == LayerKind::adaptive_average_pool2d) {
      EXPECT_EQ(shape, (Shape{2, 7, 7, 6})) << "five poolings by two";
    }
    shape = layer.output_shape(shape);
  }
  EXPECT_EQ(shape, (Shape{2, 10}));
  EXPECT_EQ(feature_names(vgg16).size(), 13U);
  EXPECT_EQ(classifier_names(vgg16).size(), 3U);
}

TEST(Vgg16, SmallestImageIs32Pixels) {
  const auto backend = make_backend("cpu", 0);
  Network network(*backend, small_vgg16(1));
  const auto plan = [&](int64_t size) {
    Pass(network, 0, network.layers().size(), {1, size, size, 3}, Pass::Mode::inference);
  };
  EXPECT_NO_THROW(plan(vgg16.smallest_image));
  EXPECT_THAT([&] { plan(vgg16.smallest_image - 1); }, ThrowsMessage<ShapeError>(HasSubstr("32")));
  EXPECT_EQ(image_size_of(small_vgg16(1), 32), 32);
}

TEST(Vgg16, ResetsTheLastLayerOrTheClassifier) {
  const StateDict before = small_vgg16(2);
  for (const Reset reset : {Reset::none, Reset::tail, Reset::classifier}) {
    StateDict dict = small_vgg16(2);
    reset_head(dict, reset, 7, 5);
    EXPECT_EQ(class_count(dict), reset == Reset::none ? 10 : 7);
    for (const std::string& name : layer_names(vgg16)) {
      const bool anew = reset != Reset::none &&
                        (name == "classifier.6" || (reset == Reset::classifier && name.starts_with("classifier")));
      const Tensor<float>&is = dict.at(name + ".weight").values(), &was = before.at(name + ".weight").values();
      if (name != "classifier.6") {
        EXPECT_EQ(is.shape(), was.shape()) << name;
      }
      EXPECT_EQ(std::ranges::equal(is.view(), was.view()), !anew) << name;
    }
  }
}

TEST(Vgg16, PackedForwardEqualsTheForwardOfTheDequantizedModel) {
  for (const int64_t size : {32, 70}) {  // the average repeats a pixel, or takes several
    const Tensor<float> images = random_tensor({2, size, size, 3}, 5);
    for (const char* scheme : {"linear:4:channel", "nf4:4:block:16:f16", "kmeans:3:channel"}) {
      SCOPED_TRACE(scheme);
      StateDict packed = small_vgg16(6);
      pack_all(packed, parse_scheme(scheme));
      StateDict exported = dequantized(packed);
      EXPECT_LE(
          relative_error(logits_of(std::move(packed), images).view(), logits_of(std::move(exported), images).view()),
          1e-5);
    }
  }
}

/// Batch norms of the hash and of PyTorch's own file fold to the logits of PyTorch.
TEST(Vgg16, AStateDictOfBatchNormsGivesPyTorchsLogits) {
  const SafetensorsFile file(golden_folder() / "vgg16.safetensors");
  StateDict dict = load_state_dict(golden_folder() / "pth/vgg16_bn_small.pth");
  EXPECT_EQ(dict.find("features.1.num_batches_tracked"), nullptr);
  const int64_t bytes = dict.file_bytes;
  EXPECT_EQ(fold_batch_norms(dict), 13);
  EXPECT_EQ(fold_batch_norms(dict), 0) << "once is enough";
  const std::vector<std::string> names = layer_names(vgg16);
  ASSERT_EQ(dict.parameters.size(), 2 * names.size());
  int64_t sum = dict.header_bytes;
  for (size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(dict.parameters[2 * i].name, names[i] + ".weight");
    EXPECT_EQ(dict.parameters[2 * i + 1].name, names[i] + ".bias");
  }
  for (const Parameter& parameter : dict.parameters) sum += parameter.file_bytes;
  EXPECT_EQ(sum, bytes) << "every byte of the file is somebody's";

  const TensorEntry& pixels = file.at("u8_nhwc");
  Tensor<float> images(host_memory(), {2, 32, 32, 3}, MemoryCategory::data);
  Preprocessor preprocessor{Preprocess::for_image_size(32)};
  for (int64_t n = 0; n < 2; ++n)
    preprocessor.run(pixels.bytes.data() + n * 32 * 32 * 3, 32, 32, false, images.view().slice(n, 1).data());
  EXPECT_LE(relative_error(logits_of(std::move(dict), images).view(), golden(file, "logits_small_bn_32").view()), 1e-4);
}

TEST(Vgg16, BatchNormsThatDoNotFitAreNamed) {
  const auto refused = [](auto&& change, const char* message) {
    StateDict dict = load_state_dict(golden_folder() / "pth/vgg16_bn_small.pth");
    change(dict);
    EXPECT_THAT([&] { fold_batch_norms(dict); }, ThrowsMessage<FormatError>(HasSubstr(message))) << message;
  };
  const auto without = [](std::string name) {
    return [name](StateDict& dict) {
      std::erase_if(dict.parameters, [&](const Parameter& parameter) { return parameter.name == name; });
    };
  };
  for (const char* missing : {"features.1.running_mean", "features.41.weight", "features.11.running_var",
                              "features.3.weight", "features.40.bias"})
    refused(without(missing), missing);
  refused([](StateDict& dict) { dict.at("features.4.running_var").values().data()[1] = -1e-3F; },
          "features.4.running_var[1]");
  refused([](StateDict& dict) { dict.at("features.4.running_var").values().data()[0] = NAN; },
          "features.4.running_var[0]");
  refused([](StateDict& dict) { dict.at("features.8.bias").value = random_tensor({5}, 1); }, "features.8.bias");
  refused([](StateDict& dict) { dict.at("features.7.weight").value = random_tensor({4, 3}, 1); }, "features.7");
  refused([](StateDict& dict) { pack_all(dict, parse_scheme("linear:8:channel")); }, "is packed");
}

/// One draw of the recipe in the golden file's metadata.
float recipe_uniform(uint64_t stream, int64_t index) {
  return uniform_from_bits(mix64((stream << 32) + static_cast<uint64_t>(index) + 0x9E3779B97F4A7C15ULL));
}

/// torchvision's vgg16 with 10 classes, or vgg16_bn, with the weights that the recipe makes.
StateDict golden_parameters(uint64_t seed, bool normalised) {
  StateDict dict;
  const auto add = [&](const std::string& name, const Shape& shape) {
    Parameter parameter{.name = name, .value = Tensor<float>(host_memory(), shape, MemoryCategory::data)};
    const bool positive = name.ends_with("running_var") || (name.ends_with("weight") && shape.rank() == 1);
    const double bound = shape.rank() > 1 ? std::sqrt(6.0 / static_cast<double>(shape.inner_elements())) : 0.05;
    const uint64_t stream = seed * 1000 + dict.parameters.size();
    const TensorView<float> values = parameter.values().view();
#pragma omp parallel for
    for (int64_t k = 0; k < values.elements(); ++k) {
      const auto uniform = static_cast<double>(recipe_uniform(stream, k));
      values[k] = static_cast<float>(positive ? 0.5 + uniform : (2.0 * uniform - 1.0) * bound);
    }
    dict.parameters.push_back(std::move(parameter));
  };
  int64_t inputs = 3;
  for (const LayerRow& row : vgg16.layers) {
    if (row.kind == LayerKind::flatten) inputs *= 7 * 7;
    if (!has_parameters(row.kind)) continue;
    const bool convolution = row.kind == LayerKind::conv2d;
    const int64_t outputs = row.outputs > 0 ? row.outputs : 10;
    const std::string layer(normalised && convolution ? row.normalised.layer : row.name), norm(row.normalised.norm);
    add(layer + ".weight", convolution ? Shape{outputs, inputs, 3, 3} : Shape{outputs, inputs});
    add(layer + ".bias", {outputs});
    if (normalised && convolution)
      for (const char* part : {".weight", ".bias", ".running_mean", ".running_var"}) add(norm + part, {outputs});
    inputs = outputs;
  }
  return dict;
}

/// 134 million weights: too slow under sanitizers.
class GoldenVgg16 : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "too large for a sanitizer";
#endif
  }
};

TEST_P(GoldenVgg16, LogitsEqualPyTorchs) {
  const std::string name = GetParam();
  const SafetensorsFile file(golden_folder() / "vgg16.safetensors");
  StateDict dict = golden_parameters(std::stoull(file.metadata().at("seed")), name == "vgg16_bn");
  const TensorEntry& sums = file.at("weight_sums_" + name);
  ASSERT_EQ(sums.bytes.size(), dict.parameters.size() * sizeof(double));
  for (size_t i = 0; i < dict.parameters.size(); ++i) {
    double sum = 0, magnitude = 0, expected = 0;
    std::memcpy(&expected, sums.bytes.data() + i * sizeof(double), sizeof(double));
    for (const float value : dict.parameters[i].values().view()) {
      sum += static_cast<double>(value);
      magnitude += std::abs(static_cast<double>(value));
    }
    ASSERT_NEAR(sum, expected, 1e-9 * magnitude) << "the recipe was not followed for " << dict.parameters[i].name;
  }
  EXPECT_EQ(fold_batch_norms(dict), name == "vgg16_bn" ? 13 : 0);

  const auto backend = make_backend("cpu", 0);
  Network network(*backend, std::move(dict));
  const TensorEntry& pixels = file.at("u8_nhwc");
  for (const int size : name == "vgg16" ? std::vector{32, 224} : std::vector{32}) {
    const Tensor<float> expected = golden(file, "logits_" + name + "_" + std::to_string(size));
    const int64_t count = expected.shape()[0];
    Tensor<float> images(host_memory(), {count, size, size, 3}, MemoryCategory::data);
    Preprocessor preprocessor{Preprocess::for_image_size(size)};
    for (int64_t n = 0; n < count; ++n)
      preprocessor.run(pixels.bytes.data() + n * 32 * 32 * 3, 32, 32, false, images.view().slice(n, 1).data());
    Pass pass(network, 0, network.layers().size(), images.shape(), Pass::Mode::inference);
    EXPECT_LE(relative_error(pass.forward(images.view()), expected.view()), 1e-4) << size;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, GoldenVgg16, ::testing::Values("vgg16", "vgg16_bn"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace nibblenet
