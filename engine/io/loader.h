#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/io/augmentation.h"
#include "engine/io/dataset.h"
#include "engine/io/preprocess.h"

namespace nibblenet {

/// A batch ready for the network. Views stay valid until the next call of Loader::next, or the
/// loader's end.
struct Batch {
  TensorView<const float> images;               ///< [N, crop, crop, 3]; empty when raw
  TensorView<const uint8_t> pixels;             ///< raw: [N, height, width, 3], as they lie in the data set
  std::span<const Augmentation> augmentations;  ///< raw: N, still to be done
  std::span<const int32_t> labels;              ///< N
  std::span<const int64_t> indices;             ///< N, into the data set
  int64_t size() const { return static_cast<int64_t>(indices.size()); }
};

/// How a loader goes through a data set.
struct LoaderOptions {
  int64_t batch_size = 128;
  bool flip = false;   ///< mirror each image with probability 1/2, a function of (seed, epoch, index)
  bool shift = false;  ///< move it by up to an eighth of its shorter side each way, black behind it; likewise
  bool cut = false;    ///< hide a square of half its shorter side (DeVries and Taylor 2017, arXiv 1708.04552); likewise
  bool shuffle = false;  ///< order is a function of (seed, epoch)
  uint64_t seed = 0;
  int64_t epoch = 0;
  bool raw = false;         ///< hand out the images' bytes, unprepared; all must have one size
  int64_t first_batch = 0;  ///< start here, for resuming inside an epoch
};

/// The order of an epoch: 0…size-1, shuffled (Fisher-Yates) when asked for.
std::vector<int64_t> epoch_order(int64_t size, bool shuffle, uint64_t seed, int64_t epoch);

/// Prepares the next batch on a thread of its own while the caller computes on the current one. The
/// last batch may be smaller. What it yields depends only on its options, never on timing. An
/// exception in the thread is rethrown by next.
class Loader {
 public:
  /// `dataset` must outlive the loader. Throws UsageError for a batch size below 1 or a first batch
  /// outside the epoch.
  Loader(const Dataset& dataset, const Preprocess& preprocess, const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  int64_t batches() const;  ///< in the whole epoch
  /// False when the epoch is over. After an exception every further call throws it again.
  bool next(Batch& batch);
  /// Seconds of processor time the preparing thread has used so far, and seconds next() has waited
  /// for it.
  double prepare_seconds() const;
  double wait_seconds() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibblenet
