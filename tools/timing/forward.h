#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "engine/io/preprocess.h"
#include "layers/network/image_batch.h"
#include "layers/network/pass.h"

namespace nibblenet::tools {

/// Where a timed forward pass starts: with prepared images in the network's precision, or with the
/// 32 x 32 bytes of CIFAR-10's, which it has to enlarge first. It ends with logits in the host's
/// memory.
enum class Task : uint8_t { t224, t32 };
constexpr std::string_view to_string(Task task) { return task == Task::t224 ? "T224" : "T32"; }
/// Of the images that T32 starts from.
inline constexpr int small_size = 32;

/// Tables of T32's preparation, for networks that are folded with it.
ResampleTables small_image_tables(int image_size);

/// Forward passes of one batch of random images, the same ones for every network. Not of zeros:
/// processors are faster, and use less power, on those.
class TimedForward {
 public:
  /// A folded network does T32 only.
  TimedForward(Network& network, int image_size, Task task, int64_t batch);

  /// Milliseconds of one pass.
  double once();
  /// Operations of the recorded pass, without the preparation of images; nothing where none was
  /// recorded.
  std::optional<int64_t> operations() const { return pass_.replayed_operations(); }
  /// Of the last pass, [batch, classes].
  const std::vector<float>& logits() const { return logits_; }

 private:
  TensorView<const float> forward();
  ConstActivations prepare_on_host();

  Network& network_;
  Task task_;
  Pass pass_;
  Tensor<float> images_;  ///< T224
  Buffer<f16> fp16_;      ///< the same, for a float16 network
  ConstActivations input_;
  Tensor<uint8_t> host_bytes_;         ///< T32
  std::optional<ImageBatch> batch_;    ///< the same, uploaded
  TensorView<const uint8_t> bytes_;    ///< in batch_, which takes them
  std::vector<Preprocessor> on_host_;  ///< one a thread, where batch_ takes no bytes
  std::vector<float> logits_;
};

}  // namespace nibblenet::tools
