#include "training/first_filters.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "engine/quant/blas.h"
#include "layers/network/network_spec.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"

namespace nibblenet {
namespace {

using testing::same_bits;
using testing::small_alexnet;
using testing::TemporaryFolder;

TEST(SymmetricEigenvectors, DiagonaliseAndAreOrthonormal) {
  for (const int64_t n : {1, 2, 7, 65}) {
    SCOPED_TRACE(n);
    std::vector<float> a(static_cast<size_t>(n * n));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) a[static_cast<size_t>(i * n + j)] = std::sin(static_cast<float>(i * j + i + j));
    std::vector<float> vectors = a;
    for (int64_t i = 1; i < n; ++i)
      for (int64_t j = 0; j < i; ++j) vectors[static_cast<size_t>(i * n + j)] = NAN;  // only the upper triangle is read
    const std::vector<float> values = blas::symmetric_eigenvectors(vectors.data(), n);
    ASSERT_EQ(values.size(), static_cast<size_t>(n));
    EXPECT_TRUE(std::ranges::is_sorted(values));
    for (int64_t i = 0; i < n; ++i) {
      const float* v = vectors.data() + i * n;
      for (int64_t j = 0; j < n; ++j) {
        double inner = 0, image = 0;
        for (int64_t k = 0; k < n; ++k) {
          inner += static_cast<double>(v[k]) * static_cast<double>(vectors[static_cast<size_t>(j * n + k)]);
          image += static_cast<double>(a[static_cast<size_t>(j * n + k)]) * static_cast<double>(v[k]);
        }
        EXPECT_NEAR(inner, i == j ? 1 : 0, 1e-5);
        EXPECT_NEAR(image, static_cast<double>(values[static_cast<size_t>(i)]) * static_cast<double>(v[j]), 1e-4);
      }
    }
  }
  EXPECT_TRUE(blas::symmetric_eigenvectors(nullptr, 0).empty());
}

/// Outputs of whitening filters on the patches they were computed from: uncorrelated, with the
/// variance e / (e + 0.0005).
TEST(FirstFilters, WhitenTrainingPatches) {
  const TemporaryFolder folder;
  write_standin(folder.path(), 100, 10, 1);
  const Dataset images = load_dataset(folder.path(), Split::train);
  StateDict parameters = small_alexnet(1);
  const Preprocess preprocess = Preprocess::for_image_size(64);
  whiten_first_filters(parameters, images, preprocess, 3);
  const Tensor<float>& weight = parameters.at("features.0.weight").values();
  const int64_t filters = weight.shape()[0], size = weight.shape()[2], half = (filters + 1) / 2;
  const int64_t length = 3 * size * size;
  const auto filter = [&](int64_t i) { return std::span(weight.data() + i * length, static_cast<size_t>(length)); };
  for (int64_t i = 0; i + half < filters; ++i)
    for (int64_t k = 0; k < length; ++k)
      EXPECT_EQ(filter(half + i)[static_cast<size_t>(k)], -filter(i)[static_cast<size_t>(k)]);
  for (const float bias : parameters.at("features.0.bias").values().view()) EXPECT_EQ(bias, 0);

  // All patches of some images, by a loop of its own.
  Preprocessor preprocessor(preprocess);
  std::vector<float> image(64 * 64 * 3);
  std::vector<double> squares(static_cast<size_t>(half)), products(static_cast<size_t>(half));
  int64_t patches = 0;
  for (size_t n = 0; n < 100; ++n) {
    preprocessor.run(images.pixels.data() + images.images[n].offset, images.images[n].width, images.images[n].height,
                     false, image.data());
    for (int64_t top = 0; top + size <= 64; top += 9)
      for (int64_t left = 0; left + size <= 64; left += 9, ++patches) {
        std::vector<double> outputs;
        for (int64_t i = 0; i < half; ++i) {
          double sum = 0;
          size_t k = 0;
          for (int64_t c = 0; c < 3; ++c)
            for (int64_t y = 0; y < size; ++y)
              for (int64_t x = 0; x < size; ++x)
                sum += static_cast<double>(filter(i)[k++]) *
                       static_cast<double>(image[static_cast<size_t>(((top + y) * 64 + left + x) * 3 + c)]);
          outputs.push_back(sum);
        }
        for (size_t i = 0; i < outputs.size(); ++i) {
          squares[i] += outputs[i] * outputs[i];
          products[i] += outputs[i] * outputs[(i + 1) % outputs.size()];
        }
      }
  }
  for (size_t i = 0; i < squares.size(); ++i) {
    EXPECT_NEAR(squares[i] / static_cast<double>(patches), 1, 0.2) << "other patches of these images";
    if (squares.size() > 1) {
      EXPECT_NEAR(products[i] / static_cast<double>(patches), 0, 0.2);
    }
  }

  StateDict again = small_alexnet(1), other = small_alexnet(1);
  whiten_first_filters(again, images, preprocess, 3);
  whiten_first_filters(other, images, preprocess, 4);
  EXPECT_TRUE(same_bits(parameters, again));
  EXPECT_FALSE(same_bits(parameters, other));
  EXPECT_THROW(whiten_first_filters(again, Dataset{}, preprocess, 3), UsageError);
  EXPECT_THROW(whiten_first_filters(again, images, Preprocess::for_image_size(1), 3), UsageError);
}

TEST(FirstFilters, DrawingAllLayersIsARandomNetworkInThoseSizes) {
  StateDict parameters = small_alexnet(1);
  const NetworkSpec& network = network_of(parameters);
  draw_all_layers(parameters, 7, 5);
  EXPECT_EQ(class_count(parameters), 7);
  EXPECT_EQ(parameters.at("classifier.1.weight").shape(), small_alexnet(1).at("classifier.1.weight").shape());
  StateDict alexnet = random_network(network, 10, 1);
  draw_all_layers(alexnet, 10, 2);
  EXPECT_TRUE(same_bits(alexnet, random_network(network, 10, 2)));
}

}  // namespace
}  // namespace nibblenet
