#pragma once

#include <optional>

#include "engine/core/tensor.h"
#include "engine/quant/rotation.h"
#include "engine/quant/size.h"
#include "kernels/activations.h"

namespace nibblenet {

/// What is known of a layer's input before it is seen: what products of 8-bit activations need.
struct InputRange {
  /// The largest magnitude that bytes hold; larger inputs saturate. 0: each image's own largest.
  float largest = 0;
  /// Whether inputs may be negative. Behind a ReLU and poolings, none is.
  bool is_signed = true;
  /// The steps between 0 and the largest of inputs without a sign: 255, or 127, where a byte also
  /// holds sums of two inputs.
  int steps = 255;

  /// The bytes of inputs up to `largest_input`. With a sign, they reach from -128 to 127.
  ByteScale scale(float largest_input) const {
    const int most = is_signed ? 127 : steps;
    return {largest_input / static_cast<float>(most), most};
  }
};

/// A filter or matrix in a backend's memory: float32, float16, or packed n-bit codes, which kernels
/// dequantize while they multiply.
class Weight {
 public:
  virtual ~Weight() = default;
  /// The shape, [K, C, R, S] or [K, C]; and whether the weight is packed codes.
  virtual const Shape& shape() const = 0;
  virtual bool packed() const = 0;
  /// The float32 values, [K, C, R, S] or [K, C], in the backend's memory. Throws Error for packed
  /// and float16 weights.
  virtual TensorView<float> values() = 0;
  /// Renews derived copies, such as reordered or fp16 ones. Call it after a write to values(), and
  /// before the input of the next pass is copied or computed: kernels behind that input may read
  /// weights before earlier work ends.
  virtual void changed() = 0;
  /// The precision of products with this weight; nothing where it is that of the activations.
  virtual std::optional<Precision> product_precision() const { return std::nullopt; }
  /// The scale of inputs that products with this weight read as bytes (ByteForm): that of a range
  /// without a sign that is known before the inputs are. Nothing: inputs are to be float32 or
  /// float16.
  virtual std::optional<ByteScale> byte_scale() const { return std::nullopt; }
  /// The share of a convolution's multiplications that are made, with this stride: less than 1
  /// where outputs share some.
  virtual double product_share(int64_t /*stride*/) const { return 1.0; }
  /// Whether products with this weight can write bytes.
  virtual bool writes_bytes() const { return false; }
  /// How inputs are to be rotated (Inference::hadamard()) before a product with this weight.
  virtual Rotation rotation() const { return {}; }
  /// The bytes that this weight occupies, by purpose; no biases.
  virtual ResidentSize resident() const = 0;
};

}  // namespace nibblenet
