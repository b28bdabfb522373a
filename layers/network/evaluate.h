#pragma once

#include <vector>

#include "engine/core/progress.h"
#include "engine/io/dataset.h"
#include "engine/io/preprocess.h"
#include "engine/ranks/ranks.h"
#include "layers/network/network.h"

namespace nibblenet {

/// The results of a network on a data set.
struct Evaluation {
  int64_t images = 0;
  int64_t correct = 0;
  double loss = 0;              ///< mean cross-entropy
  Tensor<float> logits;         ///< [images, classes], in data-set order, on the host
  std::vector<int32_t> labels;  ///< in data-set order
  double seconds = 0;           ///< wall clock of forward passes and of waiting for images
  double prepare_seconds = 0;   ///< work of the preparing thread; most of it overlaps with forward passes
  double wait_seconds = 0;      ///< part of `seconds` in which forward passes waited for images

  double accuracy() const { return images == 0 ? 0.0 : static_cast<double>(correct) / static_cast<double>(images); }
  double images_per_second() const { return seconds > 0 ? static_cast<double>(images) / seconds : 0.0; }
  int64_t predicted(int64_t image) const;  ///< class of the largest logit, the first one of equals
  bool right(int64_t image) const { return predicted(image) == labels[static_cast<size_t>(image)]; }
};

/// Images that only one of two evaluations gets right.
struct Discordant {
  int64_t first = 0;
  int64_t second = 0;
};
/// Counts these images. Requires: both evaluations are of the same images.
Discordant discordant(const Evaluation& first, const Evaluation& second);

/// The evaluation by the mean of two evaluations' logits, computed on the host. `seconds` are those
/// of both. Requires: both are of the same images and classes.
Evaluation mean_of(const Evaluation& first, const Evaluation& second);

/// Runs every image through the network, each mirrored left to right with `mirror`. Throws
/// UsageError if a label exceeds the network's classes, Interrupted if `on_progress` asks to stop.
/// With `ranks`, each takes some of the batches, and all get the whole result: the bits of one
/// process with as many threads as each has.
Evaluation evaluate(Network& network, const Dataset& dataset, const Preprocess& preprocess, int64_t batch_size,
                    const OnProgress& on_progress = {}, bool mirror = false, Ranks* ranks = nullptr);

/// evaluate() from cached features [images, features] in the backend's memory.
Evaluation evaluate_features(Network& network, TensorView<const float> features, std::span<const int32_t> labels,
                             int64_t batch_size, const OnProgress& on_progress = {});

/// Features (output of the flatten) of every image of a data set: [images, features] in the
/// backend's memory. `ranks` as in evaluate().
Tensor<float> compute_features(Network& network, const Dataset& dataset, const Preprocess& preprocess,
                               int64_t batch_size, const OnProgress& on_progress = {}, Ranks* ranks = nullptr);

/// A data set's labels for the kernels. Throws UsageError if one is not a class of the network.
std::vector<int32_t> checked_labels(const Dataset& dataset, int64_t classes);

}  // namespace nibblenet
