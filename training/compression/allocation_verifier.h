#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/quant/allocation.h"
#include "training/compression/sensitivity.h"

namespace nibblenet {

/// One candidate for every weight.
using ChosenCandidates = std::map<std::string, Candidate>;
/// What an allocation chooses among the measured weights.
ChosenCandidates chosen_candidates(const std::vector<WeightSensitivity>& measured, const Allocation& allocation);

/// What an allocation does to predictions, beside the float network's on the same images.
struct Verified {
  double float_accuracy = 0;
  double accuracy = 0;
  double float_loss = 0;  ///< mean cross-entropy
  double loss = 0;
  double divergence = 0;  ///< mean Kullback-Leibler divergence from the float network's predictions, in nats
  Discordant right;       ///< images that only the float, only the packed network gets right
  double lost_points() const { return 100 * (float_accuracy - accuracy); }
};

/// Evaluates allocations on images that no choice was made on.
class AllocationVerifier {
 public:
  /// Evaluates the float network. `network` holds the weights of `floats`; both, and the images,
  /// must outlive this. Throws Interrupted when `on_progress` asks to stop, as do calls.
  AllocationVerifier(Network& network, const StateDict& floats, const Dataset& images, const Preprocess& preprocess,
                     int64_t batch_size, QuantizeWeight quantize, const OnProgress& on_progress = {});

  /// Evaluates the network with these weights; it holds the float ones again afterwards.
  Verified operator()(const ChosenCandidates& chosen, const OnProgress& on_progress = {});

 private:
  /// Exchanges the network's weights, in order of its layers, with these.
  void exchange(std::vector<std::unique_ptr<Weight>>& weights);
  Evaluation evaluate_network(const OnProgress& on_progress);

  Network& network_;
  const StateDict& floats_;
  const Dataset& images_;
  Preprocess preprocess_;
  int64_t batch_size_;
  QuantizeWeight quantize_;
  Evaluation expected_;
};

}  // namespace nibblenet
