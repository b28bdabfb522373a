#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/io/preprocess.h"
#include "layers/network/input_range.h"
#include "layers/network/layer_routes.h"
#include "layers/network/pass.h"
#include "layers/network/precision_choice.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"

// Networks that compute in int8 and bfloat16.

namespace nibblenet {
namespace {

using testing::pack_all;
using testing::random_tensor;
using testing::relative_error;
using testing::small_alexnet;

constexpr int narrow_image_size = 67;
constexpr int64_t many = 19;  ///< more than pass the features at once
constexpr std::array narrow = {Precision::int8, Precision::bfloat16};

StateDict packed_alexnet(const std::string& scheme = "linear:4:channel") {
  StateDict dict = small_alexnet(6);
  pack_all(dict, parse_scheme(scheme));
  return dict;
}

std::vector<float> logits(Network& network, const Shape& planned, auto images) {
  Pass pass(network, 0, network.layers().size(), planned, Pass::Mode::inference);
  const auto view = pass.forward(images);
  return {view.begin(), view.end()};
}

TEST(NarrowNetwork, ManyImagesGiveTheBitsOfEachAlone) {
  const auto backend = make_backend("cpu", 2);
  const Tensor<float> images = random_tensor({many, narrow_image_size, narrow_image_size, 3}, 5);
  for (const Precision precision : narrow) {
    Network network(*backend, packed_alexnet(), precision);
    const std::vector<float> all = logits(network, images.shape(), images.view());
    for (const int64_t n : {int64_t{0}, int64_t{7}, int64_t{8}, many - 1}) {
      const std::vector<float> alone =
          logits(network, {1, narrow_image_size, narrow_image_size, 3}, std::as_const(images).view().slice(n, 1));
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), all.begin() + n * network.classes()))
          << to_string(precision) << ", image " << n;
    }
  }
}

TEST(NarrowNetwork, ManyImagesGiveTheBitsOfEachAloneWhenFolded) {
  constexpr int folded_size = 112;
  const auto backend = make_backend("cpu", 2);
  const ResampleTables tables = make_resample_tables(Preprocess::for_image_size(folded_size), 32, 32);
  std::vector<uint8_t> bytes(many * 32 * 32 * 3);
  Random random(3);
  for (uint8_t& pixel : bytes) pixel = static_cast<uint8_t>(random.below(256));
  const TensorView<const uint8_t> images(bytes.data(), {many, 32, 32, 3});
  Network network(*backend, packed_alexnet(), Precision::int8, &tables);
  const std::vector<float> all = logits(network, {many, folded_size, folded_size, 3}, images);
  for (const int64_t n : {int64_t{0}, int64_t{8}, many - 1}) {
    const std::vector<float> alone = logits(network, {1, folded_size, folded_size, 3}, images.slice(n, 1));
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), all.begin() + n * network.classes())) << "image " << n;
  }
}

/// A packed network whose layers know the ranges of their inputs, so that int8 keeps bytes between
/// them.
StateDict with_ranges(StateDict dict) {
  float largest = 3.0F;
  for (const LayerSpec& spec : layers_of(dict))
    if (spec.has_parameters()) set_input_range(dict.metadata, spec.name, largest *= 0.8F);
  return dict;
}

/// The logits of a network layer by layer, each of which reads and writes float32.
std::vector<float> logits_by_layers(Network& network, TensorView<const float> images) {
  Tensor<float> x(network.backend(), images.shape(), MemoryCategory::activations);
  std::ranges::copy(images, x.view().begin());
  for (Layer& layer : network.layers()) {
    if (layer.spec.kind == LayerKind::dropout) continue;
    Tensor<float> y(network.backend(), layer.spec.output_shape(x.shape()), MemoryCategory::activations);
    forward_layer(network.backend(), layer.spec, y.view(), x.view(), layer.weight.get(), layer.bias.view(), {});
    x = std::move(y);
  }
  return {x.view().begin(), x.view().end()};
}

TEST(NarrowNetwork, BytesBetweenLayersChangeNoBit) {
  const auto backend = make_backend("cpu", 2);
  for (const int64_t batch : {int64_t{1}, many}) {
    const Tensor<float> images = random_tensor({batch, narrow_image_size, narrow_image_size, 3}, 5);
    Network network(*backend, with_ranges(packed_alexnet()), Precision::int8);
    EXPECT_TRUE(network.layers().at(2).weight->byte_scale().has_value());
    EXPECT_EQ(logits(network, images.shape(), images.view()), logits_by_layers(network, images.view()));
    Network floats(*backend, packed_alexnet(), Precision::int8);
    EXPECT_NE(logits(floats, images.shape(), images.view()), logits_by_layers(network, images.view()));
  }
}

TEST(NarrowNetwork, BytesOf127StepsChangeNoBit) {
  const auto backend = make_backend("cpu", 2);
  StateDict dict = testing::even_alexnet(6);
  pack_all(dict, parse_scheme("kmeans:4:channel"));
  dict = with_ranges(std::move(dict));
  halve_input_steps(dict);
  for (const int64_t batch : {int64_t{1}, many}) {
    const Tensor<float> images = random_tensor({batch, narrow_image_size, narrow_image_size, 3}, 5);
    Network network(*backend, copy_of(dict), Precision::int8);
    EXPECT_LT(network.layers().at(2).weight->product_share(1), 1.0);
    EXPECT_EQ(network.layers().at(2).weight->byte_scale()->most, 127);
    EXPECT_EQ(logits(network, images.shape(), images.view()), logits_by_layers(network, images.view()));
  }
}

TEST(NarrowNetwork, AnImageWithNaNSpoilsNoOther) {
  const auto backend = make_backend("cpu", 2);
  Tensor<float> images = random_tensor({many, narrow_image_size, narrow_image_size, 3}, 5);
  Network network(*backend, with_ranges(packed_alexnet()), Precision::int8);
  const std::vector<float> expected = logits(network, images.shape(), images.view());
  constexpr int64_t spoilt = 9;
  images.view()[spoilt * images.shape().inner_elements() + 5] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> actual = logits(network, images.shape(), images.view());
  for (size_t i = 0; i < actual.size(); ++i) {
    const bool is_spoilt = static_cast<int64_t>(i) / network.classes() == spoilt;
    if (is_spoilt)
      EXPECT_TRUE(std::isnan(actual[i]));
    else
      EXPECT_EQ(actual[i], expected[i]);
  }
}

TEST(NarrowNetwork, IsCloseToFloat32) {
  const auto backend = make_backend("cpu", 2);
  const Tensor<float> images = random_tensor({many, narrow_image_size, narrow_image_size, 3}, 5);
  for (const std::string scheme :
       {"linear:4:channel", "nf4:4:channel", "kmeans:3:channel", "linear:3:channel:zero-point"}) {
    Network floats(*backend, packed_alexnet(scheme));
    const std::vector<float> expected = logits(floats, images.shape(), images.view());
    for (const Precision precision : narrow) {
      Network network(*backend, packed_alexnet(scheme), precision);
      const std::vector<float> actual = logits(network, images.shape(), images.view());
      const Shape shape{many, network.classes()};
      // Eight layers, each of whose inputs is rounded to a 255th of its largest or to 8 bits.
      EXPECT_LE(relative_error({actual.data(), shape}, {expected.data(), shape}), 0.05)
          << scheme << " " << to_string(precision);
    }
  }
}

TEST(NarrowNetwork, LedgerEqualsTheMeter) {
  for (const Precision precision : narrow)
    for (const std::string scheme : {"linear:4:channel", "kmeans:3:channel", "linear:5:channel:zero-point"}) {
      const auto backend = make_backend("cpu", 2);
      const Network network(*backend, packed_alexnet(scheme), precision);
      EXPECT_EQ(static_cast<int64_t>(backend->meter().live_total()), sum(network.ledger(), "total").resident.total())
          << scheme << " " << to_string(precision);
    }
}

TEST(NarrowNetwork, KeepsActivationsOfFewImages) {
  const auto bytes_for = [](int64_t batch) {
    const auto backend = make_backend("cpu", 2);
    Network network(*backend, packed_alexnet(), Precision::int8);
    const Pass pass(network, 0, network.classifier_begin(), {batch, narrow_image_size, narrow_image_size, 3},
                    Pass::Mode::inference);
    return backend->meter().largest(MemoryCategory::activations);
  };
  // The features of all, and a byte in each of three places that says whether an image is invalid.
  EXPECT_EQ(bytes_for(800), std::max(bytes_for(8), 800 * sizeof(float) * 360));
}

TEST(NarrowNetwork, RoutesSayWhatComputesEachLayer) {
  const auto backend = make_backend("cpu", 2);
  StateDict dict = packed_alexnet();
  Parameter& blocks = dict.at("features.6.weight");
  blocks.value = quantize(blocks.dequantized().view(), parse_scheme("linear:4:block:16"), blocks.name);
  const Network network(*backend, std::move(dict), Precision::int8);
  for (const LayerRoute& route : layer_routes(network, {1, narrow_image_size, narrow_image_size, 3}))
    EXPECT_EQ(route.route.kernel.substr(0, 4), route.layer == "features.6" ? "floa" : "int8") << route.layer;
}

}  // namespace
}  // namespace nibblenet
