#include "tools/common/default_schemes.h"

#include <array>

namespace nibblenet::tools {
namespace {

/// The convolutions hold a twentieth of the weights and feel rounding most: fine groups cost them next to nothing.
struct Default {
  std::string_view features;
  std::string_view classifier;
};
constexpr std::array<Default, 7> by_bits = {{
    {"linear:2:block:16:f16:zero-point", "linear:2:channel:zero-point"},
    {"linear:3:block:16:f16:zero-point", "linear:3:channel:zero-point"},
    {"nf4:4:block:16:f16", "nf4:4:channel"},
    {"linear:5:block:16:f16", "linear:5:channel"},
    {"linear:6:channel", "linear:6:channel"},
    {"linear:7:channel", "linear:7:channel"},
    {"linear:8:channel", "linear:8:channel"},
}};

}  // namespace

Scheme default_scheme_for(std::string_view weight_name, int bits) {
  if (bits < 2 || bits > 8) fail<UsageError>("{} bits: supported are 2 to 8", bits);
  const Default& row = by_bits[static_cast<size_t>(bits - 2)];
  return parse_scheme(weight_name.starts_with("features.") ? row.features : row.classifier);
}

Scheme calibrated_scheme_for(std::string_view weight_name, int bits) {
  // From 5 bits on nothing is left to gain over the steps of `linear`, which decode faster.
  return bits <= 4 ? default_scheme(Method::kmeans, bits) : default_scheme_for(weight_name, bits);
}

}  // namespace nibblenet::tools
