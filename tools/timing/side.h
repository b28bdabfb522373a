#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/quant/scheme.h"
#include "layers/network/network.h"

namespace nibblenet::tools {

/// One side of a comparison: how weights are stored, which device computes, and in what precision.
struct SideSpec {
  std::string name;                    ///< the text that the side was parsed from
  std::optional<Scheme> scheme;        ///< nothing: float weights
  std::string device;                  ///< "cpu", "cuda" or "cudnn"
  std::optional<Precision> precision;  ///< nothing: what the device prefers
  bool folded = false;                 ///< whether the first convolution is folded with the resize
};

/// Parses "[cudnn:]WEIGHTS[+int8|+bfloat16][+fold]", where WEIGHTS is float32, float16, bfloat16 or
/// a scheme. "cudnn:" selects the baseline instead of `device`. Throws UsageError.
SideSpec parse_side(const std::string& text, const std::string& device);

/// The sides of --compare without --sides, on a device, with or without the baseline.
std::vector<std::string> default_sides(const Backend& device, bool with_baseline);

/// A copy whose weights are packed if a scheme is given; biases stay float. Throws UsageError.
StateDict packed_copy(const StateDict& floats, const std::optional<Scheme>& scheme);

/// A side of a comparison, ready to run.
class Side {
 public:
  /// Makes the network of a side from float parameters.
  Side(const SideSpec& spec, Backend& backend, const StateDict& floats, const ResampleTables& tables);

  const std::string& name() const { return spec_.name; }
  bool folded() const { return spec_.folded; }
  Network& network() { return *network_; }
  const StateDict& parameters() const { return parameters_; }

 private:
  SideSpec spec_;
  StateDict parameters_;
  std::optional<Network> network_;
};

}  // namespace nibblenet::tools
