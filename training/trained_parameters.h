#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/io/block_share.h"
#include "layers/network/pass.h"
#include "training/compression/pruning.h"
#include "training/compression/quantized_weight.h"

namespace nibblenet {

/// How much of a layer is exactly 0.
struct LayerSparsity {
  std::string layer;
  int64_t weights = 0;
  int64_t zeros = 0;
};

/// Parameters that training changes.
enum class Learned : uint8_t {
  everything,  ///< by SGD; in packed form the master weights, and with them the codes, scales and codebooks
  scales,      ///< in packed form, by Adam: scales, codebooks and biases; the codes stay
};

/// Parameters of a network that training changes. SGD keeps a momentum for each of them and, where
/// a layer trains in packed form, the weights before rounding.
class TrainedParameters {
 public:
  /// Trains the layers from `first` on. With Learned::scales, weights that are not packed do not
  /// change.
  TrainedParameters(Network& network, size_t first, Learned learned);

  /// Trains in packed form every weight that `packed` holds in packed form. Frozen weights take its
  /// bits. Trained ones start from its scales and codebook, with the network's float weights as
  /// master weights. Throws as QuantizedWeight.
  void quantize(StateDict packed, bool keep_zeros);
  bool quantized() const { return quantized_; }

  /// Takes step `number` (from 1) on a layer from its gradient: a step of SGD or, with
  /// Learned::scales, of Adam at SGD's learning rate. Float weights take the fused step where the
  /// backend has one.
  void update(Layer& layer, const GradientSource& gradient, const SgdParameters& parameters, int64_t number);
  /// Likewise, from gradients that are stored.
  void update(Layer& layer, const StoredGradients& gradients, const SgdParameters& parameters, int64_t number);

  /// Whether steps can be taken on parts of layers: those of SGD on float weights.
  bool separable() const { return learned_ == Learned::everything && !quantized_; }
  /// Keeps momenta of these parts alone: numbers [begin, end) of a layer's weights followed by its
  /// biases. Requires: separable().
  void keep_parts(const std::function<IndexRange(size_t layer)>& part_of);
  /// update() of the part of a layer, from the gradients of that part alone. `by` takes the step.
  /// Requires: keep_parts().
  void update_part(Layer& layer, std::span<const float> gradients, const SgdParameters& parameters, ParameterSteps& by);
  /// Must follow update_part() once all parts of weights and biases are there.
  void changed() const;
  /// Copies the momenta of a layer's part to the host, by the layer's index in the network.
  std::vector<float> momenta_of(size_t layer) const;
  /// Room for all momenta under the names of their parameters.
  StateDict room_for_momenta() const;
  /// In that room, those of a layer.
  StoredGradients momenta_in(StateDict& room, size_t layer) const;

  /// Fraction of each trained layer's weights, before rounding, that is 0.
  std::vector<double> pruned() const;
  /// Prunes every trained layer to the ramp's fraction at `progress`. `from`: the fraction of each
  /// layer where the ramp began.
  void prune(const PruningOptions& options, const std::vector<double>& from, double progress);
  /// Counts zeros of each trained layer, after rounding where it trains in packed form.
  std::vector<LayerSparsity> sparsity() const;

  /// Copies all parameters of the network to host memory. Packed weights stay packed.
  StateDict model() const;
  /// Adds the state that a resumed run needs beside model() to continue with the same bits. After
  /// keep_parts() without momenta, which the caller has gathered.
  void save(StateDict& masters, StateDict& momenta) const;
  /// Throws FormatError or ShapeError for tensors that are missing or do not fit.
  void restore(const StateDict& masters, const StateDict& momenta);

 private:
  struct Trained {
    size_t layer = 0;
    Tensor<float> weight_momentum;  ///< of SGD
    Tensor<float> bias_momentum;
    IndexRange part;                             ///< of weights and biases, after keep_parts()
    Tensor<float> part_momentum;                 ///< replaces both
    Adam bias_adam;                              ///< replaces both momenta with Learned::scales
    std::unique_ptr<QuantizedWeight> quantized;  ///< null: float weights
  };
  Trained& trained_of(const Layer& layer);
  /// The weights before rounding, which SGD changes.
  TensorView<float> weights_of(const Trained& trained) const;
  void set_weights(const Trained& trained, const std::vector<float>& weights);
  void round(const Trained& trained);
  void update_scales(Trained& trained, TensorView<float> dw, TensorView<float> dbias, double learning_rate,
                     int64_t number);
  Layer& layer_of(const Trained& trained) const { return network_.layers()[trained.layer]; }

  Network& network_;
  Learned learned_;
  std::vector<Trained> trained_;
  std::vector<Parameter> frozen_packed_;
  bool in_parts_ = false;
  bool quantized_ = false;
};

}  // namespace nibblenet
