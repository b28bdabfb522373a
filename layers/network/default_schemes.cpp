#include "layers/network/default_schemes.h"

namespace nibblenet {

/// Scales are constant along a filter: kernels multiply codes and scale the sums. The convolutions
/// hold a twentieth of the weights and are the most sensitive to rounding, so that codes of another
/// bit or two cost few bytes there.
constinit const DefaultSchemes measured_schemes = {{
    {"nf4:4:channel", "linear:2:channel:zero-point"},
    {"nf4:4:channel", "linear:3:channel:zero-point"},
    {"nf4:4:channel", "nf4:4:channel"},
    {"linear:6:channel", "linear:5:channel"},
    {"linear:6:channel", "linear:6:channel"},
    {"linear:7:channel", "linear:7:channel"},
    {"linear:8:channel", "linear:8:channel"},
}};
constinit const DefaultSchemes measured_calibrated_schemes = {{
    {"kmeans:4:channel", "kmeans:2:channel"},
    {"kmeans:4:channel", "kmeans:3:channel"},
    {"kmeans:4:channel", "kmeans:4:channel"},
    {"linear:5:channel", "linear:5:channel"},
    {"linear:6:channel", "linear:6:channel"},
    {"linear:7:channel", "linear:7:channel"},
    {"linear:8:channel", "linear:8:channel"},
}};

Scheme default_scheme_of(const DefaultSchemes& schemes, const Shape& weight, int bits) {
  if (bits < 2 || bits > 8) fail<UsageError>("{} bits: supported are 2 to 8", bits);
  const DefaultScheme& row = schemes[static_cast<size_t>(bits - 2)];
  return parse_scheme(weight.rank() > 2 ? row.convolution : row.linear);
}

}  // namespace nibblenet
