#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "training/sensitivity.h"

namespace nibblenet::tools {

/// --target-bits, --target-size, --max-loss: pack chooses the width of each layer itself.
struct AllocationOptions {
  double target_bits = 0;  ///< 0: no such target
  double target_size = 0;  ///< MB of the file; 0: no such target
  double max_loss = -1;    ///< points of accuracy; below 0: no such target
  int64_t images = 500;    ///< to measure on; as many others verify the choice

  void add_to(CLI::App& app);
  bool given() const { return target_bits > 0 || target_size > 0 || max_loss >= 0; }
};

/// The network's weights, each in the scheme that was chosen for it, and the report of the choice.
struct AllocatedBits {
  std::map<std::string, PackedTensor> weights;
  nlohmann::json json;
};

/// Measures what every candidate costs on one half of the given training images, chooses exactly, verifies the choice
/// on the other half, and prints the table of what it weighed. `other_bytes` is what the file holds beside packed
/// weights. Throws UsageError that names the nearest target when the given one cannot be met.
AllocatedBits allocate_bits(const AllocationOptions& options, Backend& backend, const StateDict& floats,
                            const Dataset& images, int64_t other_bytes, const CandidateSchemes& candidates,
                            const QuantizeWeight& quantize);

}  // namespace nibblenet::tools
