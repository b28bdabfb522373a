#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/io/state_dict.h"
#include "layers/network/default_schemes.h"
#include "layers/network/layer_kinds.h"

namespace nibblenet {

/// The names of a convolution and of the batch norm behind it, in a network's variant with batch
/// norms.
struct NormalisedNames {
  std::string_view layer;
  std::string_view norm;
};

/// A row of a network's table: what a state dict does not tell about a layer, and the sizes of a
/// fresh network.
struct LayerRow {
  LayerKind kind = LayerKind::conv2d;
  std::string_view name;       ///< PyTorch's; empty without parameters
  int64_t outputs = 0;         ///< K of a fresh network, 0: its classes; P = Q of adaptive pooling
  Window window;               ///< convolution (its size: of a fresh network) and max pooling
  NormalisedNames normalised;  ///< empty: no variant has a batch norm here
};

/// A network as data. A ReLU follows every layer with parameters but the last.
struct NetworkSpec {
  std::string_view name;          ///< in --network and in names of files
  std::string_view title;         ///< in messages
  std::vector<LayerRow> layers;   ///< from [N, S, S, 3] to the logits; a flatten ends the features
  int64_t tail = 1;               ///< how many of the last linear layers --reset tail re-initialises
  std::string_view convolutions;  ///< pattern of the convolutions
  std::string_view large;         ///< pattern of the layers that hold most of the weights
  std::string_view published;     ///< name of the published weights in --init; empty: there are none
  int64_t smallest_image = 1;     ///< side of the smallest square input that leaves every pooling a pixel
  const DefaultSchemes* schemes = &measured_schemes;
  const DefaultSchemes* calibrated_schemes = &measured_calibrated_schemes;
};

/// All networks. networks.cpp lists them, and each has its own file.
const std::vector<NetworkSpec>& networks();
/// The network of this name. Throws UsageError that lists the names.
const NetworkSpec& network_named(std::string_view name);
/// The network of a state dict: the one of whose layers the fewest are missing, by name. Throws
/// FormatError when all layers of every network are missing.
const NetworkSpec& network_of(const StateDict& parameters);

/// Names of the layers with parameters, in order: convolutions, linear layers, and both.
std::vector<std::string> feature_names(const NetworkSpec& network);
std::vector<std::string> classifier_names(const NetworkSpec& network);
std::vector<std::string> layer_names(const NetworkSpec& network);

/// How many neighbouring inputs of a weight belong to one input channel: for the first linear layer
/// the pixels of the images that are flattened in front of it, else 1.
int64_t inputs_of_a_channel(const StateDict& parameters, std::string_view weight);
/// `scheme` as it fits a weight: where it is rotated, by the layer's channels; not rotated where
/// these cannot be.
Scheme fitted(Scheme scheme, const StateDict& parameters, const Parameter& weight);

/// The layers of network_of(parameters), with the sizes of the state dict. Throws FormatError when
/// a parameter is missing or superfluous, or when sizes do not fit each other.
std::vector<LayerSpec> layers_of(const StateDict& parameters);

/// Draws weights uniformly from ±sqrt(6 / fan_in) (He 2015, for ReLU) and sets biases to 0. The
/// `last` layer takes ±sqrt(1 / fan_in), so that training does not start from confident guesses.
/// The result is a function of seed, name and shape alone.
void initialise(Parameter& weight, Parameter& bias, uint64_t seed, bool last);

/// A randomly initialised network with the sizes of its table.
StateDict random_network(const NetworkSpec& network, int64_t classes, uint64_t seed);

/// The layers to re-initialise: none, the tail, or all linear layers. The tail gets the sizes of
/// the network's table; linear layers in front of it keep theirs.
enum class Reset : uint8_t { none, tail, classifier };
/// Re-initialises these layers, the last one for `classes` classes.
void reset_head(StateDict& parameters, Reset reset, int64_t classes, uint64_t seed);

/// The number of classes of a network.
int64_t class_count(const StateDict& parameters);

/// The side of the input in pixels: `asked` unless that is 0, else the metadata's, else 224. Throws
/// UsageError when the network does not take `asked`, FormatError when it does not take the
/// metadata's.
int image_size_of(const StateDict& parameters, int asked = 0);
/// Throws UsageError for a size that the network does not take.
void expect_image_size(const NetworkSpec& network, int64_t size);

}  // namespace nibblenet
