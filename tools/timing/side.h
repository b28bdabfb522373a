#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/quant/scheme.h"
#include "layers/network/network.h"

namespace nibblenet::tools {

/// One of those that a comparison sets side by side: weights, who computes, and how.
struct SideSpec {
  std::string name;              ///< as it was given
  std::optional<Scheme> scheme;  ///< nothing: float weights
  std::string device;
  std::optional<Precision> precision;  ///< nothing: what the device prefers
  bool folded = false;                 ///< the first convolution, with the resize
};

/// "float32", "float16" or a scheme, "cudnn:" in front of it for the baseline instead of `device`,
/// "+fold" behind it. Throws UsageError.
SideSpec parse_side(const std::string& text, const std::string& device);

/// What --compare sets side by side when nobody says otherwise: on the CPU, or on a GPU with or
/// without the baseline.
std::vector<std::string> default_sides(bool on_gpu, bool with_baseline);

/// A model's parameters once more.
StateDict copy_of(const StateDict& dict);
/// Float weights, packed where a scheme is given; the biases as they are. Throws UsageError.
StateDict packed_copy(const StateDict& floats, const std::optional<Scheme>& scheme);

/// A side that is ready to run.
class Side {
 public:
  /// A side on a backend, made from float parameters.
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
