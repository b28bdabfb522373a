#pragma once

#include <string>
#include <vector>

#include "engine/io/state_dict.h"
#include "kernels/shapes.h"

namespace nibblenet {

enum class LayerKind : uint8_t { conv2d, max_pool2d, adaptive_average_pool2d, flatten, dropout, linear };

/// One row of the network's table. The network is data: one loop walks this table forward, one backward.
struct LayerSpec {
  LayerKind kind = LayerKind::conv2d;
  std::string name;                    ///< PyTorch's, "features.0"; of layers with parameters, else empty
  Shape weight;                        ///< [K, C, R, R] or [K, C]
  Window window;                       ///< convolution and max pooling
  Epilogue epilogue = Epilogue::none;  ///< the ReLU behind a convolution or matrix product
  int64_t output_size = 0;             ///< adaptive pooling: P = Q

  bool has_parameters() const { return kind == LayerKind::conv2d || kind == LayerKind::linear; }
  /// Shape of this layer's output; throws ShapeError when `input` does not fit.
  Shape output_shape(const Shape& input) const;
};

/// torchvision's AlexNet ("One weird trick", Krizhevsky 2014) with whatever sizes the state dict has: 10 classes behind
/// 9216 -> 4096 -> 1024, ImageNet's 1000 behind 4096 -> 4096, or others. Throws FormatError when a parameter is missing
/// or superfluous, or when sizes do not fit each other.
std::vector<LayerSpec> alexnet_layers(const StateDict& parameters);

/// Smallest square input whose last pooling still has a pixel to pool.
inline constexpr int64_t smallest_image_size = 63;

/// Names of the five convolutions and three matrix products, in order.
const std::vector<std::string>& alexnet_feature_names();
const std::vector<std::string>& alexnet_classifier_names();

/// Weights uniform in ±sqrt(6 / fan_in) (He 2015, for ReLU), in the last layer ±sqrt(1 / fan_in) so that training does
/// not start from confident guesses; biases 0. A function of seed and name alone.
void initialise(Parameter& weight, Parameter& bias, uint64_t seed);

/// A fresh CIFAR-10 network of the seed's shape: classifier 9216 -> 4096 -> 1024 -> classes.
StateDict random_alexnet(int64_t classes, uint64_t seed);

/// Replaces the two last matrix products by fresh ones of the seed's sizes, 4096 -> 1024 -> classes (`tail`), or all
/// three
/// (`classifier`).
enum class Reset : uint8_t { none, tail, classifier };
void reset_head(StateDict& parameters, Reset reset, int64_t classes, uint64_t seed);

/// Classes the network tells apart.
int64_t class_count(const StateDict& parameters);

}  // namespace nibblenet
