#include "training/first_filters.h"

#include <algorithm>
#include <cmath>

#include "engine/core/random.h"
#include "engine/io/loader.h"
#include "engine/quant/blas.h"
#include "layers/network/network_spec.h"

namespace nibblenet {
namespace {

constexpr uint64_t patch_stream = 0x70617463'68000000ULL;  // "patch"
constexpr int64_t most_images = 2000, patches_of_image = 16;
constexpr float smallest_variance = 5e-4F;  // added to eigenvalues, as in the sources

/// Copies the patch of an image[H, W, C] at (top, left) in the order of a filter, [C, size, size].
void copy_patch(float* patch, TensorView<const float> image, int64_t top, int64_t left, int64_t size) {
  const int64_t width = image.size(2), channels = image.size(3);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t y = 0; y < size; ++y)
      for (int64_t x = 0; x < size; ++x) *patch++ = image[((top + y) * width + left + x) * channels + c];
}

/// Second moments [D, D] of patches of D = channels size size values; the upper triangle counts.
std::vector<float> patch_moments(const Dataset& images, const Preprocess& preprocess, int64_t channels, int64_t size,
                                 uint64_t seed) {
  const int64_t length = channels * size * size, places = preprocess.crop - size + 1;
  std::vector<float> moments(static_cast<size_t>(length * length)), patches;
  Loader loader(images, preprocess, {.batch_size = 100, .shuffle = true, .seed = seed});
  int64_t taken = 0;
  for (Batch batch; taken < most_images && loader.next(batch); taken += batch.size()) {
    patches.resize(static_cast<size_t>(batch.size() * patches_of_image * length));
    float* patch = patches.data();
    for (int64_t i = 0; i < batch.size(); ++i) {
      Random random(random_bits(seed, patch_stream, static_cast<uint64_t>(batch.indices[static_cast<size_t>(i)])));
      for (int64_t p = 0; p < patches_of_image; ++p, patch += length) {
        const auto top = static_cast<int64_t>(random.below(static_cast<uint64_t>(places)));
        const auto left = static_cast<int64_t>(random.below(static_cast<uint64_t>(places)));
        copy_patch(patch, batch.images.slice(i, 1), top, left, size);
      }
    }
    blas::add_gram_matrix(moments.data(), patches.data(), batch.size() * patches_of_image, length);
  }
  for (float& moment : moments) moment /= static_cast<float>(taken * patches_of_image);
  return moments;
}

}  // namespace

void draw_all_layers(StateDict& parameters, int64_t classes, uint64_t seed) {
  const std::vector<LayerSpec> layers = layers_of(parameters);
  for (const LayerSpec& layer : layers) {
    if (!layer.has_parameters()) continue;
    Parameter &weight = parameters.at(layer.name + ".weight"), &bias = parameters.at(layer.name + ".bias");
    const bool last = &layer == &layers.back();
    if (last && layer.weight[0] != classes) {
      weight.value = Tensor<float>(host_memory(), {classes, layer.weight[1]}, MemoryCategory::data);
      bias.value = Tensor<float>(host_memory(), {classes}, MemoryCategory::data);
    }
    initialise(weight, bias, seed, last);
  }
}

void whiten_first_filters(StateDict& parameters, const Dataset& images, const Preprocess& preprocess, uint64_t seed) {
  const std::string name = layers_of(parameters).front().name;
  Tensor<float>& weight = parameters.at(name + ".weight").values();
  const int64_t filters = weight.shape()[0], channels = weight.shape()[1], size = weight.shape()[2];
  if (images.size() == 0) throw UsageError("--first-filters whitened needs training images");
  if (preprocess.crop < size)
    fail<UsageError>(
        "--first-filters whitened: images of {0} x {0} pixels hold no patch of {1} x {1}; raise --image-size",
        preprocess.crop, size);
  const int64_t length = channels * size * size;
  std::vector<float> vectors = patch_moments(images, preprocess, channels, size, seed);
  const std::vector<float> variances = blas::symmetric_eigenvectors(vectors.data(), length);
  const int64_t half = std::min((filters + 1) / 2, length);
  for (int64_t i = 0; i < half; ++i) {
    const int64_t from = length - 1 - i;  // ascending
    const float* vector = vectors.data() + from * length;
    const float factor = 1 / std::sqrt(std::max(variances[static_cast<size_t>(from)], 0.0F) + smallest_variance);
    for (int64_t k = 0; k < length; ++k) {
      weight.data()[i * length + k] = factor * vector[k];
      if (half + i < filters) weight.data()[(half + i) * length + k] = -factor * vector[k];
    }
  }
  std::ranges::fill(parameters.at(name + ".bias").values().view(), 0.0F);
}

}  // namespace nibblenet
