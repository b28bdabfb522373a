#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/quant/packed_tensor.h"
#include "kernels/shapes.h"
#include "python/pace.h"
#include "python/planes.h"

namespace nibblenet::python {

/// The bytes of a packed layer, in memory that somebody else owns: buffers of a PyTorch module.
/// They are the parts of a PackedTensor, floats as little-endian bytes. A bias is float32.
struct LayerBytes {
  std::span<const uint8_t> codes;
  std::span<const uint8_t> scales;
  std::span<const uint8_t> zero_points;
  std::span<const uint8_t> block_ids;
  std::span<const uint8_t> codebook;
  std::span<const uint8_t> bias;  ///< empty: none
};

/// The form of a packed layer: its scheme and shape, without its bytes. It computes on bytes where
/// they lie, on the CPU, and copies none. Whatever the bytes are, it reads nothing else: a weight
/// may come out wrong, or NaN. Worker runs all but the constructor.
class PackedLayer {
 public:
  /// `shape`: [K, C] or [K, C, R, S]. Throws UsageError or ShapeError.
  PackedLayer(const std::string& scheme, const std::vector<int64_t>& shape);

  const Shape& shape() const { return shape_; }
  const Scheme& scheme() const { return scheme_; }

  /// Whether inputs are rotated before products.
  bool rotated() const { return scheme_.is_rotated(); }
  /// A copy of the bytes. Requires: expect_sizes().
  PackedTensor tensor(const LayerBytes& bytes) const;
  /// Throws ShapeError unless all parts have their sizes, and lie on the bytes of their types.
  /// `code_bytes`, unless nothing, is the size of codes in another order. `alignment` is that of
  /// codes; a codebook need not lie on more bytes than these either.
  void expect_sizes(const LayerBytes& bytes, std::optional<int64_t> code_bytes = std::nullopt,
                    size_t alignment = 1) const;
  /// Throws FormatError that begins with `name` unless the bytes decode to finite weights, as
  /// nibblenet::validate() does for a file's.
  void validate(const LayerBytes& bytes, const std::string& name) const;
  /// y[N, K] = x[N, C] w[K, C]^T + bias[K]. Throws ShapeError.
  void linear(TensorView<float> y, TensorView<const float> x, const LayerBytes& bytes) const;
  /// y[N, K, P, Q] = conv(x[N, C, H, W], w[K, C, R, S]) + bias[K]. What does not lie channels last
  /// is copied. Throws ShapeError.
  void conv2d(const Planes<float>& y, const Planes<const float>& x, Window window, const LayerBytes& bytes) const;
  /// What either product is expected to take, of an output of so many elements. Any thread may
  /// ask.
  Brevity brevity_of(int64_t outputs) const { return pace_.of(amount_of(outputs)); }
  /// Seconds that the last product took, for tests.
  double last_seconds() const { return pace_.last(); }
  /// The weights in float32.
  Tensor<float> dequantized(const LayerBytes& bytes) const;

 private:
  double amount_of(int64_t outputs) const;
  template <class Work>
  void with_weight(const LayerBytes& bytes, int64_t outputs, Work work) const;

  Scheme scheme_;
  Shape shape_;
  GroupMap groups_;
  int64_t code_bytes_;
  int block_id_bits_;
  Codebook codebook_;  ///< of a weight that stores none
  mutable Pace pace_;  ///< of products
};

/// The scheme of each weight, of a name and a shape, by the options of tools/pack that say how
/// weights are stored. Throws UsageError.
std::vector<std::string> choose_schemes(const std::vector<std::string>& arguments,
                                        const std::vector<std::pair<std::string, std::vector<int64_t>>>& weights);

/// The names of some parameters that are a network's (adopt_names()): pairs of the network's name
/// and the given one.
std::vector<std::pair<std::string, std::string>> adopted_names(const std::vector<std::string>& names);

}  // namespace nibblenet::python
