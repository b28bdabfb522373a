#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "python/gpu_caller.h"
#include "python/packed_layer.h"

namespace nibblenet::python {

/// A packed layer whose bytes lie in a GPU's memory, in the order of its kernels. They are somebody
/// else's, and lie there once: buffers of a PyTorch module. It computes in float16. The Worker runs
/// all but the destructor.
class GpuLayer {
 public:
  /// The layer of these bytes of the host, which are those of a file. Throws FormatError that
  /// begins with `name` unless they decode to finite weights, UsageError without a CUDA backend.
  GpuLayer(const PackedLayer& form, const LayerBytes& bytes, const std::string& name);

  const PackedLayer& form() const { return form_; }

  /// The codes and block ids that belong into the GPU's memory; empty for none. They are handed out
  /// once.
  std::vector<uint8_t> take_codes() { return std::move(codes_); }
  std::vector<uint8_t> take_block_ids() { return std::move(block_ids_); }

  /// Codes and block ids as a file has them.
  struct FileOrder {
    std::vector<uint8_t> codes;
    std::vector<uint8_t> block_ids;
  };
  /// Those of bytes of the host that lie as the GPU's.
  FileOrder file_order(const LayerBytes& bytes) const;

  /// y[N, K] = x[N, C] w[K, C]^T + bias[K]: x float16, y float16 or float32, `bytes` on the GPU,
  /// all in the order of the stream. Where inputs are rotated, x is, in place. Returns when the
  /// work is queued. Throws ShapeError.
  void linear(Activations y, Activations x, const LayerBytes& bytes, GpuCaller caller);
  /// y[N, P, Q, K] = conv(x[N, H, W, C], w[K, C, R, S]) + bias[K], likewise.
  void conv2d(Activations y, Activations x, Window window, const LayerBytes& bytes, GpuCaller caller);

 private:
  template <class Work>
  void with_weight(Activations x, const LayerBytes& bytes, GpuCaller caller, Work work);

  const PackedLayer form_;
  std::unique_ptr<BorrowedWeight> weight_;
  std::vector<uint8_t> codes_;
  std::vector<uint8_t> block_ids_;
  int64_t code_bytes_;  ///< of the GPU's codes
};

}  // namespace nibblenet::python
