#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/io/augmentation.h"
#include "engine/io/block_share.h"
#include "engine/io/dataset.h"
#include "engine/io/image_mixing.h"
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
  std::span<const int64_t> partners;            ///< N, what images are mixed with, into the data set; else empty
  std::span<const double> shares;               ///< N, of the images themselves in the mix; else empty
  int64_t size() const { return static_cast<int64_t>(indices.size()); }
};

/// Options of a loader. Random choices are functions of (seed, epoch, image).
struct LoaderOptions {
  int64_t batch_size = 128;
  bool flip = false;     ///< mirror each image with probability 1/2
  bool shift = false;    ///< shift each image by up to an eighth of its shorter side each way; the gap is black
  bool cut = false;      ///< hide a square of half the shorter side (DeVries and Taylor 2017, arXiv 1708.04552)
  bool mirror = false;   ///< mirror every image
  MixingOptions mixing;  ///< with partners as they are augmented in this epoch; all images must have one size
  bool shuffle = false;  ///< order is a function of (seed, epoch)
  uint64_t seed = 0;
  int64_t epoch = 0;
  bool raw = false;         ///< yield the images' bytes, not prepared; all images must have one size
  int64_t first_batch = 0;  ///< the batch to start with, to resume inside an epoch
  BlockShare share;         ///< the part of every batch that is prepared and given out; it may be empty
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

  int64_t batches() const { return batches_; }  ///< in the whole epoch
  /// Fills `batch`. Returns false when the epoch is over. After an exception, every further call
  /// throws it again.
  bool next(Batch& batch);
  /// Seconds of processor time that the preparing thread has used so far, and seconds that next()
  /// has waited for it.
  double prepare_seconds() const { return prepare_seconds_; }
  double wait_seconds() const { return wait_seconds_; }

 private:
  struct Slot {
    Buffer<float> images;
    Buffer<uint8_t> pixels;
    Buffer<Augmentation> augmentations;
    Buffer<int32_t> labels;
    Buffer<int64_t> indices;
    Buffer<int64_t> partners;
    Buffer<double> shares;
    int64_t size = 0;
  };

  void run();
  bool fill(Slot& slot, int64_t batch);
  void prepare_image(Slot& slot, int64_t position, int64_t index);
  const Dataset::Image& checked_image(int64_t index) const;
  Augmentation augmentation(const Dataset::Image& image, uint64_t index) const;
  const uint8_t* mixed(Slot& slot, size_t at, int64_t index);
  void write_augmented(std::vector<uint8_t>& target, int64_t index);
  const uint8_t* with_square_hidden(const Dataset::Image& image, uint64_t index, const uint8_t* pixels);

  const Dataset& dataset_;
  const LoaderOptions options_;
  const int64_t crop_;
  Preprocessor preprocessor_;
  std::vector<int64_t> order_;
  std::vector<uint8_t> cut_;      ///< an image with a part hidden
  std::vector<uint8_t> shifted_;  ///< an image that was shifted
  std::vector<uint8_t> moved_;    ///< an image that was mirrored or mixed
  std::vector<uint8_t> partner_;  ///< what it is mixed with
  int64_t batches_ = 0;
  /// Batch b lies in slot b % 2. The thread fills it once batch b - 2 has been given back, which is
  /// when next() asks for batch b - 1. So the thread prepares a batch while the caller computes on
  /// the one before.
  std::array<Slot, 2> slots_;

  std::mutex mutex_;  ///< guards filled_, given_back_, error_
  std::condition_variable changed_;
  int64_t filled_ = 0;      ///< batches before this one are, or were, ready
  int64_t given_back_ = 0;  ///< the caller is done with batches before this one
  std::exception_ptr error_;
  std::atomic<bool> stop_ = false;
  std::atomic<double> prepare_seconds_ = 0;
  int64_t upcoming_ = 0;     ///< the batch that next() gives out; only the calling thread's
  double wait_seconds_ = 0;  ///< likewise
  std::thread thread_;
};

}  // namespace nibblenet
