#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/io/state_dict.h"
#include "layers/network/default_schemes.h"
#include "layers/network/layer_kinds.h"

namespace nibblenet {

/// What a convolution and the batch norm behind it are called in the variant of a network that has
/// batch norms.
struct NormalisedNames {
  std::string_view layer;
  std::string_view norm;
};

/// A row of a network's table: what a state dict does not say about a layer, and what a fresh
/// network has.
struct LayerRow {
  LayerKind kind = LayerKind::conv2d;
  std::string_view name;       ///< PyTorch's, of layers with parameters
  int64_t outputs = 0;         ///< K of a fresh network, 0: its classes; P = Q of adaptive pooling
  Window window;               ///< convolution, whose size is a fresh network's, and max pooling
  NormalisedNames normalised;  ///< empty: no variant has a batch norm here
};

/// A network as data. Behind every layer with parameters but the last one there is a ReLU.
struct NetworkSpec {
  std::string_view name;         ///< as --network and names of files have it
  std::string_view title;        ///< for people
  std::vector<LayerRow> layers;  ///< from [N, S, S, 3] to the logits; a flatten ends the features
  int64_t tail = 1;              ///< how many of the last linear layers --reset tail makes anew
  std::string_view large;        ///< pattern of the layers that hold most of the weights
  std::string_view published;    ///< what --init calls the published weights of it; empty: there are none
  int64_t smallest_image = 1;    ///< side of the smallest square input that leaves every pooling a pixel
  const DefaultSchemes* schemes = &measured_schemes;
  const DefaultSchemes* calibrated_schemes = &measured_calibrated_schemes;
};

/// Every network there is: networks.cpp lists them, and each has a file of its own.
const std::vector<NetworkSpec>& networks();
/// Throws UsageError that lists the names there are.
const NetworkSpec& network_named(std::string_view name);
/// The network that a state dict is of, by the names of its parameters. Throws FormatError when it
/// is of none.
const NetworkSpec& network_of(const StateDict& parameters);

/// Names of the layers with parameters, in order: convolutions, linear layers, and both.
std::vector<std::string> feature_names(const NetworkSpec& network);
std::vector<std::string> classifier_names(const NetworkSpec& network);
std::vector<std::string> layer_names(const NetworkSpec& network);

/// The layers of network_of(parameters), with the sizes of the state dict, whatever they are.
/// Throws FormatError when a parameter is missing or superfluous, or when sizes do not fit each
/// other.
std::vector<LayerSpec> layers_of(const StateDict& parameters);

/// Draws weights uniformly from ±sqrt(6 / fan_in) (He 2015, for ReLU) and sets biases to 0. The
/// `last` layer takes ±sqrt(1 / fan_in), so that training does not start from confident guesses.
/// The result is a function of seed, name and shape alone.
void initialise(Parameter& weight, Parameter& bias, uint64_t seed, bool last);

/// A fresh network of its table's sizes.
StateDict random_network(const NetworkSpec& network, int64_t classes, uint64_t seed);

/// Which layers start anew: the tail, in the table's sizes, or all linear layers, of which those in
/// front of the tail keep their sizes.
enum class Reset : uint8_t { none, tail, classifier };
/// Replaces these layers by fresh ones.
void reset_head(StateDict& parameters, Reset reset, int64_t classes, uint64_t seed);

/// Classes the network tells apart.
int64_t class_count(const StateDict& parameters);

/// The side of the input in pixels: `asked` unless that is 0, else what the metadata names, else
/// 224. Throws UsageError where the network does not take `asked`, FormatError where it does not
/// take the metadata's.
int image_size_of(const StateDict& parameters, int asked = 0);
/// Throws UsageError for a size that the network does not take.
void expect_image_size(const NetworkSpec& network, int64_t size);

}  // namespace nibblenet
