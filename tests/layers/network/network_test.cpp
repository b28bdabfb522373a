#include "layers/network/network.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "layers/network/pass.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"

namespace nibblenet {
namespace {

using testing::alexnet;
using testing::even_alexnet;
using testing::logits_of;
using testing::pack_all;
using testing::random_tensor;
using testing::relative_error;
using testing::same_bits;
using testing::small_alexnet;
using testing::small_vgg16;
using testing::state_of;
using testing::TemporaryFolder;

constexpr int image_size = 67;

/// Every method, width and granularity once, with every option somewhere.
std::vector<Scheme> schemes() {
  std::vector<Scheme> all;
  for (const MethodTraits& traits : scalar_methods())
    for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits)
      all.push_back(default_scheme(traits.method, bits));
  for (const char* text :
       {"linear:2:tensor", "linear:3:row", "linear:5:block:16:f16", "linear:6:tile:3x2", "linear:7:channel:zero-point",
        "linear:3:block:7:f16:zero-point", "dynamic-tree:4:block:64:absolute", "nf4:4:channel:f16:signed",
        "fp4:4:tile:2x2", "stable-embedding:5:sorted:32:f16", "fp8-e5m2:8:tensor", "nf4:4:block:16:rotated"})
    all.push_back(parse_scheme(text));
  return all;
}

TEST(Network, PackedForwardEqualsTheForwardOfTheDequantizedModel) {
  for (const int64_t batch : {1, 11}) {  // both ways the classifier multiplies
    const Tensor<float> images = random_tensor({batch, image_size, image_size, 3}, 5);
    for (const Scheme& scheme : schemes()) {
      SCOPED_TRACE(to_string(scheme));
      StateDict packed = small_alexnet(6);
      pack_all(packed, scheme);
      StateDict exported = dequantized(packed);
      // The same weights to the bit, summed in another order: eight layers of a few ulp each.
      EXPECT_LE(
          relative_error(logits_of(std::move(packed), images).view(), logits_of(std::move(exported), images).view()),
          3e-6);
    }
  }
}

/// A pass rotates the inputs of layers whose weights are rotated: in its own memory, or in a copy
/// of what it was given; images at once, in parts, and from the middle of the network.
TEST(Network, RotatedWeightsReadRotatedInputs) {
  for (const Precision precision : {Precision::float32, Precision::bfloat16})
    for (const std::string scheme : {"trellis:3:channel:rotated", "linear:6:channel:f16:rotated"}) {
      SCOPED_TRACE(fmt::format("{}, {}", scheme, to_string(precision)));
      StateDict packed = even_alexnet(6);
      pack_all(packed, parse_scheme(scheme));
      EXPECT_FALSE(packed.at("features.0.weight").packed_values().scheme.is_rotated()) << "three channels";
      EXPECT_EQ(packed.at("features.3.weight").packed_values().scheme.rotated, 1);
      EXPECT_EQ(packed.at("classifier.1.weight").packed_values().scheme.rotated, 36);
      const auto backend = make_backend("cpu", 2);
      Network exported(*backend, dequantized(packed), precision), network(*backend, std::move(packed), precision);
      const double bound = precision == Precision::float32 ? 5e-6 : 2e-2;
      const int64_t batch = 19;  // bfloat16: more than pass the convolutions at once
      for (const size_t begin : {size_t{0}, network.classifier_begin(), network.layers().size() - 1}) {
        const Shape input = begin == 0 ? Shape{batch, image_size, image_size, 3}
                                       : Shape{batch, begin == network.classifier_begin() ? 2304 : 64};
        const Tensor<float> images = random_tensor(input, 5), before = random_tensor(input, 5);
        const auto logits = [&](Network& of) {
          Pass pass(of, begin, of.layers().size(), input, Pass::Mode::inference);
          const auto view = pass.forward(images.view());
          Tensor<float> copy(host_memory(), view.shape(), MemoryCategory::data);
          std::ranges::copy(view.span(), copy.data());
          return copy;
        };
        EXPECT_LE(relative_error(logits(network).view(), logits(exported).view()), bound) << "from layer " << begin;
        EXPECT_TRUE(std::ranges::equal(images.view().span(), before.view().span())) << "its input changed";
      }
    }
}

TEST(Network, RotatedWeightsDoNotTrain) {
  const auto backend = make_backend("cpu", 2);
  StateDict packed = even_alexnet(6);
  pack_all(packed, parse_scheme("linear:6:channel:rotated"));
  Network network(*backend, std::move(packed));
  EXPECT_THROW(Pass(network, 0, network.layers().size(), Shape{1, image_size, image_size, 3}, Pass::Mode::training),
               Error);
}

TEST(Network, ARangeOfLayersThatDoNothingGivesItsInput) {
  const auto backend = make_backend("cpu", 0);
  Network network(*backend, small_alexnet(6));
  const size_t dropout = network.classifier_begin();
  ASSERT_EQ(network.layers()[dropout].spec.kind, LayerKind::dropout);
  const Tensor<float> features = random_tensor({2, network.feature_count()}, 5);
  Pass pass(network, dropout, dropout + 1, features.shape(), Pass::Mode::inference);
  EXPECT_EQ(relative_error(pass.forward(features.view()), features.view()), 0.0);
}

TEST(Network, LedgerEqualsTheMeterAndTheFileToTheByte) {
  const TemporaryFolder folder;
  for (const Scheme& scheme : schemes()) {
    SCOPED_TRACE(to_string(scheme));
    StateDict dict = small_alexnet(7);
    pack_all(dict, scheme);
    save_state_dict(folder.path() / "p", dict);
    const auto backend = make_backend("cpu", 0);
    const Network network(*backend, load_state_dict(folder.path() / "p"));
    const SizeRow total = sum(network.ledger(), "total");
    const MemoryMeter& meter = backend->meter();
    EXPECT_EQ(meter.live(MemoryCategory::codes) + meter.live(MemoryCategory::block_ids),
              static_cast<size_t>(total.resident.codes + total.resident.block_ids + total.resident.padding));
    EXPECT_EQ(meter.live(MemoryCategory::scales), static_cast<size_t>(total.resident.scales));
    EXPECT_EQ(meter.live(MemoryCategory::zero_points), static_cast<size_t>(total.resident.zero_points));
    EXPECT_EQ(meter.live(MemoryCategory::codebooks), static_cast<size_t>(total.resident.codebooks));
    EXPECT_EQ(meter.live(MemoryCategory::biases), static_cast<size_t>(total.resident.biases));
    EXPECT_EQ(meter.live(MemoryCategory::weights), 0U);
    EXPECT_EQ(meter.live_total(), static_cast<size_t>(total.resident.total()));
    EXPECT_EQ(network.file_bytes(), network.header_bytes() + total.file);
    EXPECT_EQ(static_cast<uintmax_t>(network.file_bytes()), std::filesystem::file_size(folder.path() / "p"));
  }
}

TEST(Network, ASmallerBatchGivesTheSameLogits) {
  const Tensor<float> images = random_tensor({5, image_size, image_size, 3}, 8);
  const auto backend = make_backend("cpu", 0);
  Network network(*backend, small_alexnet(8));
  Pass pass(network, 0, network.layers().size(), images.shape(), Pass::Mode::inference);
  const auto all = pass.forward(images.view());
  std::vector<float> expected(all.begin(), all.end());
  const auto two = pass.forward(images.view().slice(1, 2));
  const int64_t classes = network.classes();
  EXPECT_LE(relative_error(two, TensorView<const float>(expected.data() + classes, {2, classes})), 1e-6);
}

TEST(Network, StateIsWhatItWasMadeFrom) {
  const auto backend = make_backend("cpu", 0);
  EXPECT_TRUE(same_bits(state_of(Network(*backend, small_alexnet(9))), small_alexnet(9)));
}

/// A network, and images that suit it.
struct TrainedCase {
  const char* name;
  StateDict (*make)(uint64_t seed, int64_t classes);
  int64_t image_size;
};
void PrintTo(const TrainedCase& c, std::ostream* stream) { *stream << c.name; }

class NetworkGradients : public ::testing::TestWithParam<TrainedCase> {};

TEST_P(NetworkGradients, EqualFiniteDifferences) {
  const auto backend = make_backend("cpu", 0);
  Network network(*backend, GetParam().make(10, 10));
  const Tensor<float> images = random_tensor({2, GetParam().image_size, GetParam().image_size, 3}, 10);
  const Tensor<float> dy = random_tensor({2, network.classes()}, 11);
  Pass pass(network, 0, network.layers().size(), images.shape(), Pass::Mode::training);
  const DropoutPlan dropout{.probability = 0.3F, .seed = 1, .step = 4};
  const auto loss = [&] {
    const auto logits = pass.forward(images.view(), dropout);
    double sum = 0;
    for (int64_t i = 0; i < logits.elements(); ++i)
      sum += static_cast<double>(logits[i]) * static_cast<double>(dy.view()[i]);
    return sum;
  };
  loss();
  std::vector<std::pair<Layer*, std::vector<float>>> gradients;
  pass.backward(dy.view(), [&](Layer& layer, const GradientSource& gradient) {
    const TensorView<float> dw = gradient.store().dw;
    gradients.emplace_back(&layer, std::vector<float>(dw.begin(), dw.end()));
  });
  ASSERT_EQ(gradients.size(), layer_names(network.spec()).size());
  for (auto& [layer, dw] : gradients) {
    // Along the gradient itself the loss rises by |dw| per unit: one large, well-conditioned
    // difference per layer.
    double norm = 0;
    for (const float g : dw) norm += static_cast<double>(g) * static_cast<double>(g);
    norm = std::sqrt(norm);
    const TensorView<float> w = layer->weight->values();
    const std::vector<float> original(w.begin(), w.end());
    const double distance = 5e-5;
    const auto loss_at = [&](double t) {
      for (int64_t i = 0; i < w.elements(); ++i)
        w[i] = static_cast<float>(static_cast<double>(original[static_cast<size_t>(i)]) +
                                  t * static_cast<double>(dw[static_cast<size_t>(i)]) / norm);
      layer->weight->changed();
      return loss();
    };
    const double slope = (loss_at(distance) - loss_at(-distance)) / (2 * distance);
    loss_at(0);
    EXPECT_NEAR(slope, norm, 0.02 * norm) << layer->spec.name;  // ReLU and pooling switch a few branches on the way
  }
}

INSTANTIATE_TEST_SUITE_P(Networks, NetworkGradients,
                         ::testing::Values(TrainedCase{"AlexNet", small_alexnet, image_size},
                                           TrainedCase{"Vgg16", small_vgg16, 32}),
                         [](const auto& test) { return test.param.name; });

TEST(AlexNet, ShapesThatDoNotFitAreNamed) {
  const auto message = [](auto&& change) {
    StateDict dict = small_alexnet(1);
    change(dict);
    try {
      layers_of(dict);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const auto tensor = [](Shape shape) { return Tensor<float>(host_memory(), shape, MemoryCategory::data); };
  EXPECT_NE(message([](StateDict& d) { d.parameters.erase(d.parameters.begin()); }).find("features.0.weight"),
            std::string::npos);
  EXPECT_NE(message([&](StateDict& d) {
              d.at("features.6.weight").value = tensor({17, 12, 3, 3});
            }).find("features.6"),
            std::string::npos);
  EXPECT_NE(message([&](StateDict& d) { d.at("features.6.bias").value = tensor({16}); }).find("features.6"),
            std::string::npos);
  EXPECT_NE(message([&](StateDict& d) {
              d.at("classifier.1.weight").value = tensor({67, 361});
            }).find("classifier.1"),
            std::string::npos);
  EXPECT_NE(message([&](StateDict& d) {
              d.at("classifier.4.weight").value = tensor({35, 67, 1, 1});
            }).find("classifier.4"),
            std::string::npos);
  EXPECT_NE(
      message([&](StateDict& d) { d.parameters.push_back({.name = "extra", .value = tensor({1})}); }).find("extra"),
      std::string::npos);
}

TEST(AlexNet, SmallestImageIs63Pixels) {
  const auto backend = make_backend("cpu", 0);
  Network network(*backend, small_alexnet(1));
  const auto plan = [&](int64_t size) {
    Pass(network, 0, network.layers().size(), {1, size, size, 3}, Pass::Mode::inference);
  };
  EXPECT_NO_THROW(plan(alexnet.smallest_image));
  EXPECT_THROW(plan(alexnet.smallest_image - 1), ShapeError);
}

TEST(AlexNet, ResetKeepsTheRest) {
  StateDict dict = small_alexnet(2);
  reset_head(dict, Reset::tail, 7, 5);
  EXPECT_EQ(class_count(dict), 7);
  EXPECT_EQ(dict.at("classifier.4.weight").shape(), (Shape{1024, 67}));
  const StateDict original = small_alexnet(2);
  for (const char* kept : {"features.0.weight", "classifier.1.weight", "classifier.1.bias"})
    EXPECT_TRUE(std::ranges::equal(dict.at(kept).values().view(), original.at(kept).values().view())) << kept;
  EXPECT_NO_THROW(layers_of(dict));
}

}  // namespace
}  // namespace nibblenet
