#pragma once

#include <algorithm>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "engine/quant/packed_tensor.h"
#include "kernels/weight.h"

namespace nibblenet {

/// Chooses the constructor of a weight that views what lies in memory of others.
struct ViewOfValues {};

/// Float32 weights in PyTorch's order. Convolutions keep a copy in the order that oneDNN's kernel
/// prefers, and renew it after changed().
class FloatWeightCpu final : public Weight {
 public:
  /// Copies values from the host.
  FloatWeightCpu(MemoryResource& memory, TensorView<const float> values);
  /// Views values in memory of others, which outlives it: changed() follows each change of theirs.
  /// Its own resident size is 0.
  FloatWeightCpu(MemoryResource& memory, TensorView<float> values, ViewOfValues) : memory_(memory), view_(values) {}
  const Shape& shape() const override { return view_.shape(); }
  bool packed() const override { return false; }
  TensorView<float> values() override { return view_; }
  void changed() override { reordered_valid_ = false; }
  ResidentSize resident() const override;

  /// The weights in the layout `wanted`: the plain tensor itself if it has that layout.
  dnnl::memory in_layout(const dnnl::memory::desc& wanted, const dnnl::engine& engine, dnnl::stream& stream);

 private:
  MemoryResource& memory_;
  Tensor<float> values_;    ///< empty where the values are others'
  TensorView<float> view_;  ///< of all values
  Buffer<float> reordered_;
  dnnl::memory::desc layout_;
  bool reordered_valid_ = false;
};

/// Packed weights: exactly what the file holds (codes, scales, …).
class PackedWeightCpu final : public Weight {
 public:
  /// Copies codes, scales and the rest from the host.
  PackedWeightCpu(MemoryResource& memory, const PackedTensor& packed);
  /// Views what lies in memory of others, which outlives it. Its own resident size is 0.
  PackedWeightCpu(const Shape& shape, const PackedView& view) : shape_(shape), view_(view) {}
  const Shape& shape() const override { return shape_; }
  bool packed() const override { return true; }
  TensorView<float> values() override;
  void changed() override {}
  Rotation rotation() const override { return view_.rotation; }
  ResidentSize resident() const override { return resident_; }
  const PackedView& view() const { return view_; }

 private:
  Shape shape_;
  Buffer<uint8_t> codes_;
  Buffer<uint8_t> scales_;
  Buffer<uint8_t> zero_points_;
  Buffer<uint8_t> block_ids_;
  Buffer<float> stored_codebook_;  ///< the file's codebook, metered
  Codebook codebook_;              ///< decoded, a fixed 256 entries
  PackedView view_;
  ResidentSize resident_;
};

/// A copy of host values in `memory`; an empty buffer for no values.
template <class T>
Buffer<T> copy_of(MemoryResource& memory, const std::vector<T>& source, MemoryCategory category) {
  if (source.empty()) return {};
  Buffer<T> buffer(memory, source.size(), category);
  std::ranges::copy(source, buffer.data());
  return buffer;
}

/// oneDNN's descriptor of a filter in PyTorch's order.
dnnl::memory::desc plain_filter_desc(const Shape& shape);

}  // namespace nibblenet
