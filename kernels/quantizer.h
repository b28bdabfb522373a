#pragma once

#include <string_view>

#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// Quantization of float weights. A backend without kernels for it overrides nothing: the host
/// quantizes.
class Quantizer {
 public:
  virtual ~Quantizer() = default;
  /// nibblenet::quantize of weights on the host, to the bit, wherever the passes over them run.
  virtual PackedTensor quantize(TensorView<const float> host_weights, const Scheme& scheme, std::string_view name) {
    return nibblenet::quantize(host_weights, scheme, name);
  }
};

}  // namespace nibblenet
