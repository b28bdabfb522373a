#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "engine/io/preprocess.h"
#include "layers/network/image_batch.h"
#include "layers/network/pass.h"

namespace nibblenet::tools {

/// What a timed forward pass starts from: prepared images in the network's precision (t224,
/// whatever their size), or the bytes of 32 x 32 images, which it enlarges first (t32). It ends
/// with logits in the host's memory.
enum class Task : uint8_t { t224, t32 };
constexpr std::string_view to_string(Task task) { return task == Task::t224 ? "T224" : "T32"; }
/// Pixels a side of the images that T32 starts from.
inline constexpr int small_size = 32;

/// Tables of the resize from small_size to `image_size`, for networks that are folded with it.
ResampleTables small_image_tables(int image_size);

/// Forward passes of one batch of random images, which are the same for every network. They are not
/// zeros, on which processors are faster and use less power.
class TimedForward {
 public:
  /// A folded network runs T32 only.
  TimedForward(Network& network, int image_size, Task task, int64_t batch);

  /// Milliseconds of one pass.
  double once();
  /// Records the first `end` layers of the pass, to be timed by the device's clock. Null where that
  /// is not the whole task (T32), or the backend does not record.
  std::unique_ptr<Recording> record_layers(size_t end);
  Network& network() const { return network_; }
  /// The shape of T224's images.
  const Shape& input_shape() const { return images_.shape(); }
  /// The number of operations in the recorded pass, the preparation of images aside; nothing when
  /// the backend records nothing.
  std::optional<int64_t> operations() const { return pass_.replayed_operations(); }
  /// Logits of the last pass, [batch, classes].
  const std::vector<float>& logits() const { return logits_; }

 private:
  TensorView<const float> forward();
  ConstActivations prepare_on_host();

  Network& network_;
  Task task_;
  Pass pass_;
  Tensor<float> images_;  ///< T224
  Buffer<f16> fp16_;      ///< images_ in float16, for a float16 network
  ConstActivations input_;
  Tensor<uint8_t> host_bytes_;         ///< T32
  std::optional<ImageBatch> batch_;    ///< host_bytes_, uploaded
  TensorView<const uint8_t> bytes_;    ///< the bytes in batch_, if it takes bytes
  std::vector<Preprocessor> on_host_;  ///< one a thread, if batch_ takes no bytes
  std::vector<float> logits_;
};

}  // namespace nibblenet::tools
