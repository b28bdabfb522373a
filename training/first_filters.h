#pragma once

#include "engine/io/dataset.h"
#include "engine/io/preprocess.h"
#include "engine/io/state_dict.h"

namespace nibblenet {

/// Draws every layer of a network anew, as random_network() does in these sizes; the last one for
/// `classes` classes. Requires: no weight is packed.
void draw_all_layers(StateDict& parameters, int64_t classes, uint64_t seed);

/// Makes the first convolution a whitening one: its filters are the eigenvectors v with the largest
/// eigenvalues e of the second moments of training patches, each as v / sqrt(e + 0.0005) and
/// negated, with biases 0 (Page 2018, "How to train your ResNet"; Jordan 2024, arXiv 2404.00498).
/// Filters beyond two an eigenvector stay. Patches are drawn by seed and image, 16 from each of up
/// to 2,000 prepared images. Throws UsageError without images, or when they are smaller than a
/// filter.
void whiten_first_filters(StateDict& parameters, const Dataset& images, const Preprocess& preprocess, uint64_t seed);

}  // namespace nibblenet
