#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "engine/core/random.h"
#include "engine/io/preprocess.h"
#include "layers/cross_entropy.h"
#include "layers/network/pass.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using testing::golden;
using testing::golden_folder;
using testing::relative_error;

/// One draw of the recipe in the golden file's metadata: the top 24 bits of splitmix64.
double recipe_uniform(uint64_t stream, uint64_t index) {
  return static_cast<double>(uniform_from_bits(mix64((stream << 32) + index + 0x9E3779B97F4A7C15ULL)));
}

/// The whole AlexNet with the weights that the recipe makes.
StateDict golden_parameters(uint64_t seed) {
  StateDict dict = random_network(network_named("alexnet"), 10, 0);  // shapes and names, in PyTorch's order
  for (size_t i = 0; i < dict.parameters.size(); ++i) {
    Parameter& parameter = dict.parameters[i];
    const bool weight = parameter.shape().rank() > 1;
    const double bound = weight ? std::sqrt(6.0 / static_cast<double>(parameter.shape().inner_elements())) : 0.05;
    const TensorView<float> values = parameter.values().view();
    for (int64_t k = 0; k < values.elements(); ++k)
      values[k] = static_cast<float>((2.0 * recipe_uniform(seed * 100 + i, static_cast<uint64_t>(k)) - 1.0) * bound);
  }
  return dict;
}

/// The elements of a tensor in a file, which may lie at any address.
template <class T>
std::vector<T> elements_of(const TensorEntry& entry) {
  std::vector<T> elements(entry.bytes.size() / sizeof(T));
  std::memcpy(elements.data(), entry.bytes.data(), elements.size() * sizeof(T));
  return elements;
}

Tensor<float> golden_images(const SafetensorsFile& file) {
  const TensorEntry& bytes = file.at("u8_nhwc");
  Tensor<float> images(host_memory(), {bytes.sizes[0], 224, 224, 3}, MemoryCategory::data);
  Preprocessor preprocessor{Preprocess()};
  for (int64_t n = 0; n < bytes.sizes[0]; ++n)
    preprocessor.run(bytes.bytes.data() + n * 32 * 32 * 3, 32, 32, false, images.view().slice(n, 1).data());
  return images;
}

TEST(GoldenAlexNet, ForwardAndBackwardEqualPyTorch) {
  const SafetensorsFile file(golden_folder() / "alexnet_forward.safetensors");
  StateDict parameters = golden_parameters(std::stoull(file.metadata().at("seed")));
  const std::vector<double> sums = elements_of<double>(file.at("weight_sums"));
  for (size_t i = 0; i < parameters.parameters.size(); ++i) {
    double sum = 0, magnitude = 0;
    for (const float value : parameters.parameters[i].values().view()) {
      sum += static_cast<double>(value);
      magnitude += std::abs(static_cast<double>(value));
    }
    ASSERT_NEAR(sum, sums[i], 1e-6 * magnitude) << "the recipe was not followed for " << parameters.parameters[i].name;
  }

  const auto backend = make_backend("cpu", 0);
  Network network(*backend, std::move(parameters));
  const Tensor<float> images = golden_images(file);
  Pass pass(network, 0, network.layers().size(), images.shape(), Pass::Mode::training);
  const TensorView<const float> logits = pass.forward(images.view());
  EXPECT_LE(relative_error(logits, golden(file, "logits").view()), 1e-4);

  Pass features(network, 0, network.classifier_begin(), images.shape(), Pass::Mode::inference);
  const TensorView<const float> flat = features.forward(images.view());
  EXPECT_LE(relative_error({flat.data(), {images.shape()[0], 256, 6, 6}}, golden(file, "features").view()), 1e-4);

  const std::vector<int64_t> targets = elements_of<int64_t>(file.at("target"));
  std::vector<int32_t> labels(targets.begin(), targets.end());
  Tensor<float> losses(*backend, {logits.size(0)}, MemoryCategory::data);
  Tensor<float> dlogits(*backend, logits.shape(), MemoryCategory::data);
  cross_entropy(*backend, losses.view(), dlogits.view(), logits, {labels.data(), {logits.size(0)}});
  double loss = 0;
  for (const float each : losses.view()) loss += static_cast<double>(each) / static_cast<double>(logits.size(0));
  EXPECT_NEAR(loss, static_cast<double>(golden(file, "loss").view()[0]), 1e-4 * std::abs(loss));

  const Tensor<float> norms = golden(file, "grad_norms");
  auto expected = norms.view().end();  // the callbacks come last layer first; weight, bias in the file
  pass.backward(dlogits.view(), [&](Layer& layer, const GradientSource& source) {
    const auto [dw, dbias] = source.store();
    for (const auto& [gradient, name] : {std::pair{dbias, ".bias"}, std::pair{dw, ".weight"}}) {
      double squares = 0;
      for (const float g : gradient) squares += static_cast<double>(g) * static_cast<double>(g);
      --expected;
      // PyTorch summed the squares in float32, which loses 1.3e-3 over the 38 million of
      // classifier.1: recomputed in float64 from the same golden data that norm is 235.9372, not
      // 235.6431.
      const double tolerance = gradient.elements() > (1 << 24) ? 2e-3 : 1e-3;
      EXPECT_NEAR(std::sqrt(squares), static_cast<double>(*expected), tolerance * static_cast<double>(*expected))
          << layer.spec.name << name;
    }
  });
  EXPECT_EQ(expected, norms.view().begin());
}

}  // namespace
}  // namespace nibblenet
