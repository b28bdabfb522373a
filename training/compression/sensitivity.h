#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "layers/network/evaluate.h"

namespace nibblenet {

/// One way to store one weight: its scheme and, if above 0, the fixed step of its groups in root
/// mean squares (Range::step).
struct Candidate {
  Scheme scheme;
  float step = 0;
  friend bool operator==(const Candidate&, const Candidate&) = default;
};
/// "linear:4:channel", "linear:4:channel, step 2"
std::string to_string(const Candidate& candidate);

/// Which bytes of a choice to measure: compressing each takes time.
enum class MeasuredBytes : uint8_t { stored, stored_and_compressed };

/// A candidate, and what it does to the network when every other weight stays float.
struct MeasuredChoice {
  Candidate candidate;
  int64_t payload_bytes = 0;     ///< codes, scales, zero points, codebook, block ids
  int64_t stored_bytes = 0;      ///< the same with padding: resident, and in a file that is not compressed
  int64_t compressed_bytes = 0;  ///< in a compressed file; 0 unless asked for
  double divergence = 0;  ///< mean Kullback-Leibler divergence of the predictions from the float network's, in nats
};

/// Measured loss of one weight's candidates.
struct WeightSensitivity {
  std::string name;     ///< "features.0.weight"
  int64_t weights = 0;  ///< how many
  std::vector<MeasuredChoice> choices;
};

/// Choices that were measured, by weight and candidate: they are not measured again.
class ChoiceRecord {
 public:
  using Entry = std::pair<std::string, MeasuredChoice>;  ///< with the weight's name

  /// Begins with `known`. `on_added`, unless empty, hears of what add() takes.
  explicit ChoiceRecord(const std::vector<Entry>& known = {}, std::function<void(const Entry&)> on_added = {});
  /// Null for what was not measured, or without its compressed bytes where `bytes` asks for these.
  const MeasuredChoice* find(const std::string& weight, const Candidate& candidate, MeasuredBytes bytes) const;
  void add(const Entry& entry);

 private:
  std::function<void(const Entry&)> on_added_;
  std::map<std::string, MeasuredChoice> choices_;
};

/// The candidates of a weight, and how one is made.
using Candidates = std::function<std::vector<Candidate>(const Parameter& weight)>;
using QuantizeWeight = std::function<PackedTensor(const Parameter& weight, const Candidate& candidate)>;

/// Makes each candidate once, however often it is asked for.
QuantizeWeight remembered(QuantizeWeight quantize);

/// Stores one weight at a time in every candidate way and measures the predictions for `images`.
/// The divergence needs no labels. Unlike a difference of losses it is not noisy: it is never
/// negative, and 0 only if nothing changed. `network` holds the weights of `floats` and holds them
/// again afterwards. Inputs of the layer at hand are kept for all images, so that the layers before
/// it run once. Choices of `record`, unless it is null, are taken from there, and others are added
/// to it. Progress counts choices; throws Interrupted when it asks to stop.
std::vector<WeightSensitivity> measure_sensitivity(Network& network, const StateDict& floats, const Dataset& images,
                                                   const Preprocess& preprocess, int64_t batch_size,
                                                   const Candidates& candidates, const QuantizeWeight& quantize,
                                                   MeasuredBytes bytes = MeasuredBytes::stored,
                                                   const OnProgress& on_progress = {}, ChoiceRecord* record = nullptr);

/// mean over rows of sum p log(p / q), p and q being the softmax of logits [rows, classes] on the
/// host; in double.
double mean_divergence(TensorView<const float> p_logits, TensorView<const float> q_logits);

/// Bytes of a tensor without padding: what SizeRow::bits_per_weight() counts.
int64_t payload_bytes(const PackedTensor& packed);

}  // namespace nibblenet
