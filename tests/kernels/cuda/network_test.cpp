#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "layers/cross_entropy.h"
#include "layers/network/pass.h"
#include "tests/kernels/cuda/kernel_families.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

// Whole passes of the CUDA backend against the CPU's: every scheme forward, and training.

namespace nibblenet {
namespace {

using testing::even_alexnet;
using testing::even_vgg16;
using testing::make_test_backend;
using testing::pack_all;
using testing::random_tensor;
using testing::relative_error;
using testing::small_alexnet;
using testing::small_vgg16;

constexpr int64_t image_size = 67;

Tensor<float> on(Backend& backend, const Tensor<float>& values) {
  Tensor<float> copy(backend, values.shape(), MemoryCategory::data);
  backend.copy_from_host(copy.data(), values.data(), values.view().span().size_bytes());
  return copy;
}

Tensor<float> logits_of(Backend& backend, StateDict dict, const Tensor<float>& images, Precision precision) {
  Network network(backend, std::move(dict), precision);
  Pass pass(network, 0, network.layers().size(), images.shape(), Pass::Mode::inference);
  const Tensor<float> input = on(backend, images);
  const auto logits = pass.forward(input.view());
  Tensor<float> copy(host_memory(), logits.shape(), MemoryCategory::data);
  backend.copy_to_host(copy.data(), logits.data(), logits.span().size_bytes());
  return copy;
}

/// "" leaves the network in floats.
StateDict network_of(const std::string& scheme) {
  StateDict dict = small_alexnet(6);
  if (!scheme.empty()) pack_all(dict, parse_scheme(scheme));
  return dict;
}

std::vector<std::string> schemes() {
  std::vector<std::string> all = {"",
                                  "linear:4:channel:zero-point",
                                  "linear:3:block:16:f16",
                                  "dynamic-tree:5:tile:3x5",
                                  "trellis:0.5:channel",
                                  "trellis:1.25:channel:f16",
                                  "trellis:3:channel",
                                  "trellis:2:channel:rotated",
                                  "kmeans:4:channel:rotated"};
  for (const MethodTraits& traits : scalar_methods())
    for (const Scheme& scheme : schemes_of_every_width(traits.method)) all.push_back(to_string(scheme));
  return all;
}

class CudaNetwork : public ::testing::Test {
 protected:
  CpuBackend cpu_{2};
  std::unique_ptr<Backend> device_ = make_test_backend();
  Backend& cuda_ = *device_;
};

TEST_F(CudaNetwork, ForwardOfEverySchemeInBothPrecisions) {
  const Tensor<float> images = random_tensor({2, image_size, image_size, 3}, 5);
  for (const std::string& scheme : schemes()) {
    SCOPED_TRACE(scheme.empty() ? "float" : scheme);
    const Tensor<float> expected = logits_of(cpu_, network_of(scheme), images, Precision::float32);
    EXPECT_LE(relative_error(logits_of(cuda_, network_of(scheme), images, Precision::float32).view(), expected.view()),
              1e-5);
    // Weights are rounded to fp16. With four values a channel, the errors of many weights are one,
    // and add up.
    const bool few_values = scheme.starts_with("kmeans:2");
    EXPECT_LE(relative_error(logits_of(cuda_, network_of(scheme), images, Precision::float16).view(), expected.view()),
              few_values ? 1e-2 : 2e-3);
  }
}

TEST_F(CudaNetwork, SuperblocksThroughAllLayers) {
  const std::vector<std::pair<std::string, int64_t>> cases = {{"linear:6:channel:zero-point", 2},
                                                              {"linear:4:channel", 17}};
  for (const auto& [scheme, batch] : cases) {
    SCOPED_TRACE(fmt::format("{}, batch {}", scheme, batch));
    const auto network = [&] {
      StateDict dict = even_alexnet(6);
      pack_all(dict, parse_scheme(scheme));
      return dict;
    };
    const Tensor<float> images = random_tensor({batch, image_size, image_size, 3}, 5);
    const Tensor<float> expected = logits_of(cpu_, network(), images, Precision::float32);
    auto& backend = dynamic_cast<CudaBackend&>(cuda_);
    const auto launches = [&](KernelChoice choice) {
      backend.choose_kernels(choice);
      const int64_t before = backend.stream().launches();
      EXPECT_LE(relative_error(logits_of(cuda_, network(), images, Precision::float16).view(), expected.view()), 2e-3);
      return backend.stream().launches() - before;
    };
    launches({});  // by wgmma, where there is one
    // Equal but for the second and the third pooling.
    EXPECT_EQ(launches(testing::mma_kernels), launches(testing::plain_kernels) - 2);
    backend.choose_kernels({});
  }
}

TEST_F(CudaNetwork, RotatedWeightsReadRotatedInputs) {
  for (const std::string scheme : {"trellis:3:channel:f16:rotated", "linear:6:channel:rotated"})
    for (const int64_t batch : {1, 19}) {
      SCOPED_TRACE(fmt::format("{}, batch {}", scheme, batch));
      StateDict packed = even_alexnet(6);
      pack_all(packed, parse_scheme(scheme));
      const Tensor<float> images = random_tensor({batch, image_size, image_size, 3}, 5);
      const Tensor<float> expected = logits_of(cpu_, dequantized(packed), images, Precision::float32);
      for (const auto& [precision, bound] : {std::pair{Precision::float32, 1e-5}, {Precision::float16, 3e-3}}) {
        StateDict copy = copy_of(packed);
        EXPECT_LE(relative_error(logits_of(cuda_, std::move(copy), images, precision).view(), expected.view()), bound);
      }
    }
}

TEST_F(CudaNetwork, OneImageTakesAKernelForEachLayerWithWeights) {
  // These kernels also add biases and compute ReLU and pooling. Having fewer channels than AlexNet
  // changes nothing about that.
  const Shape shape = {1, 224, 224, 3};
  const Tensor<float> image = random_tensor(shape, 5);
  const Tensor<float> floats = on(cuda_, image);
  Buffer<f16> fp16(cuda_, static_cast<size_t>(shape.elements()), MemoryCategory::data);
  cuda_.convert(TensorView<f16>(fp16.data(), shape), floats.view());
  for (const std::string scheme : {"", "linear:4:channel", "kmeans:4:channel"}) {
    SCOPED_TRACE(scheme);
    const auto network_of_scheme = [&] {
      StateDict dict = even_alexnet(6);
      if (!scheme.empty()) pack_all(dict, parse_scheme(scheme));
      return dict;
    };
    Network network(cuda_, network_of_scheme(), Precision::float16);
    Pass pass(network, 0, network.layers().size(), shape, Pass::Mode::inference);
    const auto forward = [&] { return pass.forward(TensorView<const f16>(fp16.data(), shape)); };
    forward();
    const auto logits = forward();  // recorded, and replayed
    EXPECT_EQ(pass.replayed_operations(), 8);
    Tensor<float> actual(host_memory(), logits.shape(), MemoryCategory::data);
    cuda_.copy_to_host(actual.data(), logits.data(), logits.span().size_bytes());
    EXPECT_LE(relative_error(actual.view(), logits_of(cpu_, network_of_scheme(), image, Precision::float32).view()),
              2e-3);
  }
}

/// Poolings of 2 by 2, and an average of one pixel at 32 pixels, of several at 96.
TEST_F(CudaNetwork, Vgg16sForwardInBothPrecisions) {
  struct Case {
    StateDict (*make)(uint64_t seed);
    std::string scheme;
    int64_t batch, size;
  };
  const auto small = [](uint64_t seed) { return small_vgg16(seed); };
  const std::vector<Case> cases = {
      {small, "", 2, 32},      {small, "linear:3:block:16:f16", 1, 32}, {small, "kmeans:4:channel", 1, 96},
      {even_vgg16, "", 2, 32}, {even_vgg16, "linear:4:channel", 1, 32}, {even_vgg16, "nf4:4:block:16:f16", 9, 32}};
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{}, batch {}, {} pixels", c.scheme, c.batch, c.size));
    const auto network = [&] {
      StateDict dict = c.make(6);
      if (!c.scheme.empty()) pack_all(dict, parse_scheme(c.scheme));
      return dict;
    };
    const Tensor<float> images = random_tensor({c.batch, c.size, c.size, 3}, 5);
    const Tensor<float> expected = logits_of(cpu_, network(), images, Precision::float32);
    EXPECT_LE(relative_error(logits_of(cuda_, network(), images, Precision::float32).view(), expected.view()), 1e-5);
    EXPECT_LE(relative_error(logits_of(cuda_, network(), images, Precision::float16).view(), expected.view()), 4e-3);
  }
}

TEST_F(CudaNetwork, ARangeMayEndWithLayersThatDoNothing) {
  for (const Precision precision : {Precision::float32, Precision::float16}) {
    Network network(cuda_, network_of("linear:4:channel"), precision);
    const size_t dropout = network.classifier_begin();
    ASSERT_EQ(network.layers()[dropout].spec.kind, LayerKind::dropout);
    const Tensor<float> features = random_tensor({2, network.feature_count()}, 5);
    const Tensor<float> input = on(cuda_, features);
    Pass pass(network, dropout, dropout + 1, features.shape(), Pass::Mode::inference);
    const auto output = pass.forward(input.view());
    Tensor<float> copy(host_memory(), output.shape(), MemoryCategory::data);
    cuda_.copy_to_host(copy.data(), output.data(), output.span().size_bytes());
    EXPECT_LE(relative_error(copy.view(), features.view()), precision == Precision::float32 ? 0.0 : 5e-4);
  }
}

TEST_F(CudaNetwork, LedgerEqualsTheMeterToTheByte) {
  for (const std::string& scheme : schemes()) {
    for (const Precision precision : {Precision::float32, Precision::float16}) {
      SCOPED_TRACE(scheme + " " + std::string(to_string(precision)));
      ASSERT_EQ(cuda_.meter().live_total(), 0U);
      const Network network(cuda_, network_of(scheme), precision);
      const SizeRow total = sum(network.ledger(), "total");
      EXPECT_EQ(static_cast<int64_t>(cuda_.meter().live_total()), total.resident.total());
      const int64_t bytes_of_weights = static_cast<int64_t>(bytes_of(precision)) * total.weights;
      EXPECT_EQ(total.resident.weights, scheme.empty() ? bytes_of_weights : 0);
    }
  }
}

TEST_F(CudaNetwork, APackedForwardAllocatesNothingAsLargeAsItsWeights) {
  StateDict dict = network_of("linear:4:channel");
  int64_t largest = 0;
  for (const Parameter& parameter : dict.parameters) largest = std::max(largest, parameter.shape().elements());
  const Tensor<float> images = random_tensor({1, image_size, image_size, 3}, 5);
  logits_of(cuda_, std::move(dict), images, Precision::float16);
  const MemoryMeter& meter = cuda_.meter();
  for (const MemoryCategory category : {MemoryCategory::weights, MemoryCategory::workspace})
    EXPECT_EQ(meter.largest(category), 0U) << to_string(category);
  EXPECT_LE(static_cast<int64_t>(meter.largest(MemoryCategory::codes)), largest);
}

TEST_F(CudaNetwork, PassesOverTheSamePlaceAreReplayed) {
  auto& stream = dynamic_cast<CudaBackend&>(cuda_).stream();
  for (const Precision precision : {Precision::float32, Precision::float16}) {
    Network network(cuda_, network_of("linear:4:channel"), precision);
    const Shape shape = {2, image_size, image_size, 3};
    Pass pass(network, 0, network.layers().size(), shape, Pass::Mode::inference);
    Tensor<float> input(cuda_, shape, MemoryCategory::data);
    std::vector<int64_t> launches;
    for (const uint64_t seed : {5, 6, 5, 7}) {
      const Tensor<float> images = random_tensor(shape, seed);
      cuda_.copy_from_host(input.data(), images.data(), images.view().span().size_bytes());
      const int64_t before = stream.launches();
      const auto logits = pass.forward(std::as_const(input).view());
      launches.push_back(stream.launches() - before);
      Tensor<float> actual(host_memory(), logits.shape(), MemoryCategory::data);
      cuda_.copy_to_host(actual.data(), logits.data(), logits.span().size_bytes());
      EXPECT_EQ(
          relative_error(actual.view(), logits_of(cuda_, network_of("linear:4:channel"), images, precision).view()),
          0.0);
    }
    EXPECT_GT(launches[0], 0);
    EXPECT_EQ(launches[1], launches[0]);  // while it is recorded
    EXPECT_EQ(launches[2] + launches[3], 0);
    EXPECT_GE(pass.replayed_operations(), launches[0]);
  }
}

/// What host execution cannot show, because its kernels run one after the other: writes that a
/// kernel does not see although it waited for them. On a GPU inputs change 1,000 times.
TEST_F(CudaNetwork, ReplaysGiveTheSameBitsWithAndWithoutPdl) {
  auto& backend = dynamic_cast<CudaBackend&>(cuda_);
  const int rounds = cuda_.description().starts_with("host execution") ? 2 : 1000;
  for (const std::string& scheme : {std::string("linear:4:channel"), std::string("nf4:4:block:16:f16")}) {
    SCOPED_TRACE(scheme);
    StateDict dict = even_alexnet(6);
    pack_all(dict, parse_scheme(scheme));
    Network network(cuda_, std::move(dict), Precision::float16);
    const Shape shape{1, image_size, image_size, 3};
    std::vector<std::vector<float>> logits;
    for (const bool pdl : {false, true}) {
      KernelChoice choice = backend.gpu().choice;
      choice.pdl = pdl;
      backend.choose_kernels(choice);
      Pass pass(network, 0, network.layers().size(), shape, Pass::Mode::inference);
      Tensor<float> x(cuda_, shape, MemoryCategory::data);
      for (int round = 0; round < rounds; ++round) {
        const Tensor<float> image = random_tensor(shape, static_cast<uint64_t>(round));
        cuda_.copy_from_host(x.data(), image.data(), image.view().span().size_bytes());
        const std::vector<float> result = cuda_.to_host(pass.forward(std::as_const(x).view()));
        if (!pdl)
          logits.push_back(result);
        else
          ASSERT_EQ(result, logits[static_cast<size_t>(round)]) << "round " << round;
      }
      EXPECT_TRUE(pass.replayed_operations().has_value());
    }
    EXPECT_NE(logits[0], logits[1]) << "the inputs differ";
  }
}

/// Losses and last gradients of training steps on one batch.
struct TrainingRun {
  std::vector<double> losses;
  std::vector<Tensor<float>> gradients;  ///< weights' of the first step, last layer first
};

TrainingRun train(Backend& backend, size_t begin, int steps) {
  constexpr int64_t batch = 6;
  Network network(backend, small_alexnet(3));
  const size_t first = begin == 0 ? 0 : network.classifier_begin();
  const Shape input = begin == 0 ? Shape{batch, image_size, image_size, 3} : Shape{batch, network.feature_count()};
  Pass pass(network, first, network.layers().size(), input, Pass::Mode::training);
  const Tensor<float> images = on(backend, random_tensor(input, 5));
  const std::vector<int32_t> host_labels = {3, 1, 4, 1, 5, 9};
  Tensor<int32_t> labels(backend, {batch}, MemoryCategory::data);
  backend.copy_from_host(labels.data(), host_labels.data(), host_labels.size() * sizeof(int32_t));
  Tensor<float> losses(backend, {batch}, MemoryCategory::data);
  Tensor<float> dlogits(backend, {batch, network.classes()}, MemoryCategory::data);
  std::vector<Tensor<float>> momenta;
  TrainingRun result;
  for (int step = 0; step < steps; ++step) {
    const auto logits =
        pass.forward(images.view(), {.probability = 0.3F, .seed = 1, .step = static_cast<uint64_t>(step)});
    cross_entropy(backend, losses.view(), dlogits.view(), logits, std::as_const(labels).view());
    size_t layers = 0;
    pass.backward(dlogits.view(), [&](Layer& layer, const GradientSource& gradient) {
      const TensorView<float> dw = gradient.store().dw;
      if (step == 0) {
        result.gradients.emplace_back(host_memory(), dw.shape(), MemoryCategory::data);
        backend.copy_to_host(result.gradients.back().data(), dw.data(), dw.span().size_bytes());
        const std::vector<float> zeros(static_cast<size_t>(dw.elements()));
        momenta.emplace_back(backend, dw.shape(), MemoryCategory::optimizer);
        backend.copy_from_host(momenta.back().data(), zeros.data(), dw.span().size_bytes());
      }
      backend.training().sgd_step(layer.weight->values(), momenta[layers++].view(), dw, {.learning_rate = 0.01F});
      layer.weight->changed();
    });
    std::vector<float> host_losses(batch);
    backend.copy_to_host(host_losses.data(), losses.data(), batch * sizeof(float));
    double sum = 0;
    for (const float loss : host_losses) sum += static_cast<double>(loss);
    result.losses.push_back(sum / batch);
  }
  return result;
}

TEST_F(CudaNetwork, TenStepsOfTrainingLoseWhatTheCpuLoses) {
  for (const size_t begin : {0, 1}) {  // everything; the classifier behind frozen features
    const TrainingRun expected = train(cpu_, begin, 10), actual = train(cuda_, begin, 10);
    ASSERT_EQ(actual.gradients.size(), expected.gradients.size());
    for (size_t i = 0; i < expected.gradients.size(); ++i)
      EXPECT_LE(relative_error(actual.gradients[i].view(), expected.gradients[i].view()), 1e-4) << "layer " << i;
    for (size_t step = 0; step < 10; ++step)
      EXPECT_NEAR(actual.losses[step], expected.losses[step], 1e-4 * expected.losses[step]) << "step " << step;
  }
}

}  // namespace
}  // namespace nibblenet
