#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "engine/quant/hessian.h"
#include "layers/network/evaluate.h"

namespace nibblenet {

/// The Hessian XᵀX of the inputs of every layer with parameters, their ranges, the Fisher diagonal
/// of the outputs of the linear ones, and what all were measured on.
struct Calibration {
  std::map<std::string, Hessian> hessians;           ///< by weight: "features.0.weight"
  std::map<std::string, std::vector<float>> fisher;  ///< of outputs (FisherDiagonal), by weight, linear only
  std::map<std::string, float> ranges;  ///< of inputs (RangeMeter), by layer: "features.3"; none in older files
  int64_t images = 0;
  int64_t positions = 0;  ///< output positions of a convolution taken from each image, or all if there are fewer
  uint64_t seed = 0;      ///< that they were drawn by
  int image_size = 0;     ///< pixels the images were brought to
  std::string data;       ///< what the images were: "CIFAR-10 (binary), train"
  std::string data_fingerprint;
  std::string model_fingerprint;
};

/// By weight, the rank that adds up its Hessian and packs it. Ranks get about as much work each.
using WeightOwners = std::map<std::string, int>;
WeightOwners owners_of_weights(const StateDict& model, int64_t images, int ranks);

/// Options of a calibration.
struct CalibrationOptions {
  int64_t batch_size = 32;  ///< large ones estimate the Fisher diagonal less well
  int64_t positions = 0;    ///< of a convolution, an image; 0: positions_for() the images
  uint64_t seed = 1;
  int64_t range_images = 200;  ///< images, evenly spread among all, whose inputs count for the ranges
};

/// Output positions of a convolution to look at in each of `images` images. Neighbouring windows
/// hold much the same values. Beyond about 40 rows for each input of the widest convolution, more
/// images help more than more positions.
int64_t positions_for(int64_t images);

/// Runs all images through the float network and sums x^T x of the inputs of every layer with
/// parameters. A linear layer's x are its input rows. A convolution's x are im2col rows, in the
/// order of its OIHW weights. Their output positions are drawn without repetition by seed, layer
/// and image. The classifier also runs backward, for the Fisher diagonal. Ranges are those of whole
/// inputs of some images. Memory: D^2 floats a layer, the activations of a batch, and a gradient of
/// the largest linear weight, for any number of images. `data` and the fingerprints are left empty.
/// Throws UsageError without images, Interrupted when `on_progress` asks to stop.
///
/// With `ranks`, each runs some of the batches and sends the inputs of layers to their owners. They
/// add them up in the order of the batches: the bits of one process with as many threads. A rank's
/// result has the Hessians that it owns, and all else.
Calibration calibrate(Network& network, const Dataset& dataset, const Preprocess& preprocess,
                      CalibrationOptions options, const OnProgress& on_progress = {}, Ranks* ranks = nullptr,
                      const WeightOwners& owners = {});
/// Brings all Hessians to the first rank.
void collect_hessians(Ranks& ranks, const StateDict& model, const WeightOwners& owners, Calibration& calibration);

/// Checksums that identify a data set and a float model.
std::string fingerprint_of(const Dataset& dataset);
std::string fingerprint_of(const StateDict& model);

/// The Fisher diagonal of a weight's outputs; empty for a convolution.
std::span<const float> fisher_of(const Calibration& calibration, const std::string& weight);

/// Writes the upper triangles and the rest as safetensors, atomically.
void save_calibration(const std::filesystem::path& path, const Calibration& calibration);
/// Throws IoError or FormatError naming the file; UsageError when it was measured on another model
/// than `model`. Nothing larger than the model asks for is allocated.
Calibration load_calibration(const std::filesystem::path& path, const StateDict& model);

}  // namespace nibblenet
