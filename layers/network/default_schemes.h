#pragma once

#include <array>
#include <string_view>

#include "engine/core/tensor.h"
#include "engine/quant/scheme.h"

namespace nibblenet {

/// The default schemes of one width: of convolutions' filters, whose codes may be wider, and of
/// linear layers' matrices.
struct DefaultScheme {
  std::string_view convolution;
  std::string_view linear;
};
using DefaultSchemes = std::array<DefaultScheme, 7>;  ///< of 2 to 8 bits

/// Of the schemes with one scale an output channel, those that measured best in accuracy per byte
/// on AlexNet, without and with a calibration. docs/schemes.md has the measurements.
extern const DefaultSchemes measured_schemes;
extern const DefaultSchemes measured_calibrated_schemes;

/// The scheme of a weight of this shape. Throws UsageError for a width without a default.
Scheme default_scheme_of(const DefaultSchemes& schemes, const Shape& weight, int bits);

}  // namespace nibblenet
