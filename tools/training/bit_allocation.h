#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <string>

#include "engine/io/json.h"
#include "tools/common/data_search.h"
#include "training/compression/sensitivity.h"

namespace nibblenet::tools {

/// --target-bits, --target-size, --target-file and --max-loss: pack chooses each layer's scheme.
struct AllocationOptions {
  double target_bits = 0;   ///< bits a weight; 0: no such target
  double target_size = 0;   ///< MB of the file; 0: no such target
  double target_file = 0;   ///< MB of the compressed file, by choice of step sizes; 0: no such target
  double max_loss = -1;     ///< points of accuracy; below 0: no such target
  int64_t images = 500;     ///< images to measure on; as many others verify the choice
  bool compressed = false;  ///< whether the file will be compressed: --target-size then means that size

  /// Adds the flags to a program.
  void add_to(CLI::App& app);
  bool given() const { return target_bits > 0 || file_target() > 0 || max_loss >= 0; }
  bool chooses_steps() const { return target_file > 0; }
  /// Whether a choice costs the bytes that it takes in a compressed file.
  bool by_compressed() const { return chooses_steps() || (compressed && target_size > 0); }
  /// Target of the file's size, in MB; 0 when there is none.
  double file_target() const { return std::max(target_size, target_file); }
  /// Loads training images to measure and to verify on: the held-out ones if the model was trained
  /// with validation. Else skips the first `calibrated` images, which codes were chosen by, if the
  /// data has enough others: on those, errors look smaller than they are.
  Dataset load_images(DataSource& data, const StateDict& model, int64_t calibrated) const;
};

/// The packed weights that an allocation chose, and its report.
struct AllocatedWeights {
  std::map<std::string, PackedTensor> weights;
  nlohmann::json json;
};

/// Chooses a candidate for every weight: measures all on half of `images`, takes the best that
/// meets the target, verifies it on the other half, and prints a table. `other_bytes` are those of
/// the file beside the packed weights. When the target cannot be met, throws UsageError that says
/// what can: the smallest size, or the loss of the widest codes.
AllocatedWeights allocate(const AllocationOptions& options, Backend& backend, const StateDict& floats,
                          const Dataset& images, int64_t other_bytes, const Candidates& candidates,
                          const QuantizeWeight& quantize);

}  // namespace nibblenet::tools
