#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "tools/common/data_search.h"
#include "training/compression/sensitivity.h"

namespace nibblenet::tools {

/// --target-bits, --target-size, --target-file, --max-loss: pack chooses how to store each layer
/// itself.
struct AllocationOptions {
  double target_bits = 0;   ///< 0: no such target
  double target_size = 0;   ///< MB of the file; 0: no such target
  double target_file = 0;   ///< MB of the compressed file, whose layers' steps are chosen
  double max_loss = -1;     ///< points of accuracy; below 0: no such target
  int64_t images = 500;     ///< to measure on; as many others verify the choice
  bool compressed = false;  ///< the file will be compressed, and --target-size is its size then

  /// Adds the flags to a program.
  void add_to(CLI::App& app);
  bool given() const { return target_bits > 0 || file_target() > 0 || max_loss >= 0; }
  bool chooses_steps() const { return target_file > 0; }
  /// Bytes are those of the compressed file.
  bool by_compressed() const { return chooses_steps() || (compressed && target_size > 0); }
  double file_target() const { return std::max(target_size, target_file); }
  /// Training images to measure and to verify on. They lie behind the `calibrated` ones that codes
  /// were chosen by, if there are enough: on those, errors look smaller than they are.
  Dataset load_images(DataSource& data, int64_t calibrated) const;
};

/// The network's weights, each stored as was chosen for it, and the report of the choice.
struct AllocatedWeights {
  std::map<std::string, PackedTensor> weights;
  nlohmann::json json;
};

/// Measures every candidate on one half of the given training images, chooses exactly, verifies the
/// choice on the other half, and prints a table of the candidates. `other_bytes`: bytes of the file
/// beside packed weights. Throws UsageError that names the nearest target when the given one cannot
/// be met.
AllocatedWeights allocate(const AllocationOptions& options, Backend& backend, const StateDict& floats,
                          const Dataset& images, int64_t other_bytes, const Candidates& candidates,
                          const QuantizeWeight& quantize);

}  // namespace nibblenet::tools
