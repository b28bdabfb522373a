#include "tools/common/default_schemes.h"

#include <array>

namespace nibblenet::tools {
namespace {

/// The convolutions hold a twentieth of the weights and feel rounding most: fine groups cost them next to nothing.
struct Default {
  std::string_view features;
  std::string_view classifier;
};
using Defaults = std::array<Default, 7>;  // of 2 to 8 bits
constexpr Defaults without_calibration = {{
    {"linear:2:block:16:f16:zero-point", "linear:2:channel:zero-point"},
    {"linear:3:block:16:f16:zero-point", "linear:3:channel:zero-point"},
    {"nf4:4:block:16:f16", "nf4:4:channel"},
    {"linear:5:block:16:f16", "linear:5:channel"},
    {"linear:6:channel", "linear:6:channel"},
    {"linear:7:channel", "linear:7:channel"},
    {"linear:8:channel", "linear:8:channel"},
}};
constexpr Defaults with_calibration = {{
    {"linear:2:block:16:f16:zero-point", "kmeans:2:channel"},
    {"kmeans:3:block:128:f16", "kmeans:3:channel"},
    {"kmeans:4:channel", "kmeans:4:channel"},
    {"linear:5:channel", "linear:5:channel"},
    {"linear:6:channel", "linear:6:channel"},
    {"linear:7:channel", "linear:7:channel"},
    {"linear:8:channel", "linear:8:channel"},
}};

Scheme scheme_of(const Defaults& defaults, std::string_view weight_name, int bits) {
  if (bits < 2 || bits > 8) fail<UsageError>("{} bits: supported are 2 to 8", bits);
  const Default& row = defaults[static_cast<size_t>(bits - 2)];
  return parse_scheme(weight_name.starts_with("features.") ? row.features : row.classifier);
}

}  // namespace

Scheme default_scheme_for(std::string_view weight_name, int bits) {
  return scheme_of(without_calibration, weight_name, bits);
}

Scheme calibrated_scheme_for(std::string_view weight_name, int bits) {
  return scheme_of(with_calibration, weight_name, bits);
}

}  // namespace nibblenet::tools
