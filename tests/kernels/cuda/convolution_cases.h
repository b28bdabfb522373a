#pragma once

#include <vector>

#include "kernels/backend.h"

namespace nibblenet::testing {

struct ConvolutionCase {
  Shape x;
  Shape w;
  Window window = {};
};

/// Cases for superblocks: filters of several slices, of rows around a block's 64 and 128, of
/// strides, without padding; images of which a block holds many, one, and a band.
inline const std::vector<ConvolutionCase> superblock_convolutions = {
    {{3, 4, 5, 64}, {70, 64, 3, 3}, {3, 1, 1}},    {{1, 13, 13, 128}, {64, 128, 3, 3}, {3, 1, 1}},
    {{2, 7, 6, 192}, {130, 192, 2, 2}, {2, 2, 1}}, {{1, 19, 17, 64}, {64, 64, 5, 5}, {5, 1, 2}},
    {{5, 3, 3, 64}, {1, 64, 1, 1}, {1, 1, 0}},     {{1, 9, 9, 64}, {65, 64, 3, 3}, {3, 3, 0}},
};

}  // namespace nibblenet::testing
