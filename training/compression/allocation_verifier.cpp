#include "training/compression/allocation_verifier.h"

namespace nibblenet {

ChosenCandidates chosen_candidates(const std::vector<WeightSensitivity>& measured, const Allocation& allocation) {
  ChosenCandidates chosen;
  for (size_t i = 0; i < measured.size(); ++i)
    chosen[measured[i].name] = measured[i].choices[allocation.choices[i]].candidate;
  return chosen;
}

AllocationVerifier::AllocationVerifier(Network& network, const StateDict& floats, const Dataset& images,
                                       const Preprocess& preprocess, int64_t batch_size, QuantizeWeight quantize,
                                       const OnProgress& on_progress)
    : network_(network),
      floats_(floats),
      images_(images),
      preprocess_(preprocess),
      batch_size_(batch_size),
      quantize_(std::move(quantize)),
      expected_(evaluate(network_, images_, preprocess_, batch_size_, on_progress)) {}

void AllocationVerifier::exchange(std::vector<std::unique_ptr<Weight>>& weights) {
  auto other = weights.begin();
  for (Layer& layer : network_.layers())
    if (layer.spec.has_parameters()) std::swap(*other++, layer.weight);
}

Verified AllocationVerifier::operator()(const ChosenCandidates& chosen, const OnProgress& on_progress) {
  std::vector<std::unique_ptr<Weight>> weights;
  for (const Layer& layer : network_.layers()) {
    if (!layer.spec.has_parameters()) continue;
    const Parameter& weight = floats_.at(layer.spec.name + ".weight");
    weights.push_back(network_.backend().make_weight(quantize_(weight, chosen.at(weight.name)), network_.precision()));
  }
  exchange(weights);
  const Evaluation actual = evaluate(network_, images_, preprocess_, batch_size_, on_progress);
  exchange(weights);

  return {.float_accuracy = expected_.accuracy(),
          .accuracy = actual.accuracy(),
          .float_loss = expected_.loss,
          .loss = actual.loss,
          .divergence = mean_divergence(expected_.logits.view(), actual.logits.view()),
          .right = discordant(expected_, actual)};
}

}  // namespace nibblenet
