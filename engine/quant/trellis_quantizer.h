#pragma once

#include <string_view>

#include "engine/quant/quantizer.h"

namespace nibblenet {

/// quantize() of quantizer.h for trellis schemes. A channel's scale is its root mean square times a
/// factor that suits the rate; Range::search fits it once to the strings chosen, by least squares.
///
/// Rounding::nearest chooses each string by the squared errors of its weights. Rounding::gptq
/// chooses the strings of one input after the other, as gptq() does with codes; each
/// coordinate-descent pass chooses every string once more. Since a string spans channels, the
/// tensor as a whole keeps its nearest strings if its error by the Hessian would not fall:
/// GptqReport::rows_kept is then all channels, else none.
///
/// Takes 10 K D bytes of memory beside the factor, and for each thread 1 MB.
PackedTensor quantize_trellis(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                              const QuantizeOptions& options);

}  // namespace nibblenet
