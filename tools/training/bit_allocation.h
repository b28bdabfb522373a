#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "engine/io/json.h"
#include "tools/common/data_search.h"
#include "training/compression/sensitivity.h"

namespace nibblenet::tools {

/// --target-bits, --target-file, --target-resident and --max-loss: pack chooses each layer's
/// scheme.
struct AllocationOptions {
  double target_bits = 0;      ///< bits a weight; 0: no such target
  double target_file = 0;      ///< MB of the file; 0: no such target
  double target_resident = 0;  ///< MB in memory, the ledger's sum; 0: no such target
  double max_loss = -1;        ///< points of accuracy; below 0: no such target
  int64_t images = 500;        ///< images to measure on; as many others verify the choice
  std::string measurements;    ///< the file of what is measured; empty: none
  bool compressed = false;     ///< whether the file will be compressed: --target-file then means that size

  /// Adds the flags to a program.
  void add_to(CLI::App& app);
  bool given() const { return target_bits > 0 || limits_bytes() || max_loss >= 0; }
  /// Whether the file, or memory, or both may hold so many bytes at most.
  bool limits_bytes() const { return target_file > 0 || target_resident > 0; }
  /// Whether a choice costs the bytes that it takes in a compressed file.
  bool by_compressed() const { return compressed && target_file > 0; }
  /// Loads training images to measure and to verify on: the held-out ones if the model was trained
  /// with validation. Else skips the first `calibrated` images, which codes were chosen by, if the
  /// data has enough others: on those, errors look smaller than they are.
  Dataset load_images(DataSource& data, const StateDict& model, int64_t calibrated) const;
};

/// The bytes that a model takes beside its packed weights.
struct OtherBytes {
  int64_t file = 0;
  int64_t resident = 0;
};

/// The packed weights that an allocation chose, and its report.
struct AllocatedWeights {
  std::map<std::string, PackedTensor> weights;
  nlohmann::json json;
};

/// The weights whose inputs to rotate, and the measurements behind that.
struct Rotations {
  std::set<std::string> weights;
  nlohmann::json json = nlohmann::json::array();
};

/// Rotates the weights whose second candidate, the rotated one of two of equal bytes, changes the
/// predictions for half of `images` less. Prints both. Weights without candidates are not rotated.
/// `record` as in measure_sensitivity().
Rotations choose_rotations(Backend& backend, const StateDict& floats, const Dataset& images,
                           const Candidates& plain_and_rotated, const QuantizeWeight& draft, ChoiceRecord* record);

/// Chooses a candidate for every weight: measures all on half of `images`, takes the best that
/// meets the targets, verifies it on the other half, and prints tables. `draft` makes candidates to
/// measure, `quantize` those that are chosen; it is asked for these more than once (remembered()).
/// `record` as in measure_sensitivity(). When the target cannot be met, throws UsageError that says
/// what can: the smallest size, or the loss of the widest codes.
AllocatedWeights allocate(const AllocationOptions& options, Backend& backend, const StateDict& floats,
                          const Dataset& images, const OtherBytes& others, const Candidates& candidates,
                          const QuantizeWeight& draft, const QuantizeWeight& quantize, ChoiceRecord* record);

}  // namespace nibblenet::tools
