#include "layers/network/network_spec.h"

namespace nibblenet {

/// torchvision's VGG-16 (Simonyan and Zisserman 2014, arXiv 1409.1556, table 1, column D). Each
/// convolution's row ends with the names of it and its batch norm in vgg16_bn. The average pool to
/// 7 x 7 takes any input: at 32 pixels it repeats the one remaining pixel.
NetworkSpec vgg16() {
  using enum LayerKind;
  constexpr Window filter{.size = 3, .stride = 1, .padding = 1}, pooling{.size = 2, .stride = 2, .padding = 0};
  return {.name = "vgg16",
          .title = "VGG-16",
          .layers = {{conv2d, "features.0", 64, filter, {"features.0", "features.1"}},
                     {conv2d, "features.2", 64, filter, {"features.3", "features.4"}},
                     {max_pool2d, {}, 0, pooling},
                     {conv2d, "features.5", 128, filter, {"features.7", "features.8"}},
                     {conv2d, "features.7", 128, filter, {"features.10", "features.11"}},
                     {max_pool2d, {}, 0, pooling},
                     {conv2d, "features.10", 256, filter, {"features.14", "features.15"}},
                     {conv2d, "features.12", 256, filter, {"features.17", "features.18"}},
                     {conv2d, "features.14", 256, filter, {"features.20", "features.21"}},
                     {max_pool2d, {}, 0, pooling},
                     {conv2d, "features.17", 512, filter, {"features.24", "features.25"}},
                     {conv2d, "features.19", 512, filter, {"features.27", "features.28"}},
                     {conv2d, "features.21", 512, filter, {"features.30", "features.31"}},
                     {max_pool2d, {}, 0, pooling},
                     {conv2d, "features.24", 512, filter, {"features.34", "features.35"}},
                     {conv2d, "features.26", 512, filter, {"features.37", "features.38"}},
                     {conv2d, "features.28", 512, filter, {"features.40", "features.41"}},
                     {max_pool2d, {}, 0, pooling},
                     {adaptive_average_pool2d, {}, 7},
                     {flatten},
                     {linear, "classifier.0", 4096},
                     {dropout},
                     {linear, "classifier.3", 4096},
                     {dropout},
                     {linear, "classifier.6"}},
          .tail = 1,
          .convolutions = "features.*",
          .large = "classifier.[03]",
          .smallest_image = 32};
}

}  // namespace nibblenet
