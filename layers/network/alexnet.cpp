#include "layers/network/network_spec.h"

namespace nibblenet {

/// torchvision's AlexNet ("One weird trick", Krizhevsky 2014, arXiv 1404.5997). A fresh one has
/// 1024 neurons in front of the classes, like the original notebooks; torchvision's has 4096.
NetworkSpec alexnet() {
  using enum LayerKind;
  constexpr Window pooling{.size = 3, .stride = 2, .padding = 0};
  return {.name = "alexnet",
          .title = "AlexNet",
          .layers = {{conv2d, "features.0", 64, {11, 4, 2}},
                     {max_pool2d, {}, 0, pooling},
                     {conv2d, "features.3", 192, {5, 1, 2}},
                     {max_pool2d, {}, 0, pooling},
                     {conv2d, "features.6", 384, {3, 1, 1}},
                     {conv2d, "features.8", 256, {3, 1, 1}},
                     {conv2d, "features.10", 256, {3, 1, 1}},
                     {max_pool2d, {}, 0, pooling},
                     {adaptive_average_pool2d, {}, 6},
                     {flatten},
                     {dropout},
                     {linear, "classifier.1", 4096},
                     {dropout},
                     {linear, "classifier.4", 1024},
                     {linear, "classifier.6"}},
          .tail = 2,
          .convolutions = "features.*",
          .large = "classifier.[14]",
          .published = "imagenet",
          .smallest_image = 63};
}

}  // namespace nibblenet
