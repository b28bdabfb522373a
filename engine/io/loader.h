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

/// A batch of images and labels. Views stay valid until the next call of Loader::next(), or the
/// loader's end.
struct Batch {
  TensorView<const float> images;               ///< prepared: [N, crop, crop, 3]; empty when raw
  TensorView<const uint8_t> pixels;             ///< raw: [N, height, width, 3], bytes of the data set
  std::span<const Augmentation> augmentations;  ///< raw: N, which the caller applies
  std::span<const int32_t> labels;              ///< N
  std::span<const int64_t> indices;             ///< N, into the data set
  int64_t size() const { return static_cast<int64_t>(indices.size()); }
};

/// Options of a loader. Random choices are functions of (seed, epoch, image).
struct LoaderOptions {
  int64_t batch_size = 128;
  bool flip = false;     ///< mirror each image with probability 1/2
  bool shift = false;    ///< shift each image by up to an eighth of its shorter side each way; the gap is black
  bool cut = false;      ///< hide a square of half the shorter side (DeVries and Taylor 2017, arXiv 1708.04552)
  bool shuffle = false;  ///< order is a function of (seed, epoch)
  uint64_t seed = 0;
  int64_t epoch = 0;
  bool raw = false;         ///< yield the images' bytes, not prepared; all images must have one size
  int64_t first_batch = 0;  ///< the batch to start with, to resume inside an epoch
};

/// The order of an epoch: 0…size-1, or with `shuffle` a permutation of it (Fisher-Yates).
std::vector<int64_t> epoch_order(int64_t size, bool shuffle, uint64_t seed, int64_t epoch);

/// Prepares the next batch on its own thread while the caller computes on the current one. The last
/// batch may be smaller. The batches depend only on the options, never on timing. next() rethrows
/// an exception of the thread.
class Loader {
 public:
  /// `dataset` must outlive the loader. Throws UsageError for a batch size below 1 or a first batch
  /// outside the epoch.
  Loader(const Dataset& dataset, const Preprocess& preprocess, const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  int64_t batches() const;  ///< in the whole epoch
  /// Fills `batch`. Returns false when the epoch is over. After an exception, every further call
  /// throws it again.
  bool next(Batch& batch);
  /// Seconds of processor time that the preparing thread has used so far, and seconds that next()
  /// has waited for it.
  double prepare_seconds() const;
  double wait_seconds() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibblenet
