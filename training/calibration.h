#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "engine/quant/second_moments.h"
#include "training/evaluate.h"

namespace nibblenet {

/// Second moments of the inputs of every layer with parameters, and what they were measured on.
struct Calibration {
  std::map<std::string, SecondMoments> moments;  ///< by weight: "features.0.weight"
  int64_t images = 0;
  int64_t positions = 0;  ///< output positions of a convolution taken from each image, or all if there are fewer
  uint64_t seed = 0;      ///< that they were drawn by
  int image_size = 0;     ///< pixels the images were brought to
  std::string data;       ///< what the images were: "CIFAR-10 (binary), train"
  std::string data_fingerprint;
  std::string model_fingerprint;
};

struct CalibrationOptions {
  int64_t batch_size = 32;
  int64_t positions = 0;  ///< of a convolution, an image; 0: 64, or fewer where 2^17 rows of all images are enough
  uint64_t seed = 1;
};

/// Runs all images through the float network, layer by layer, and sums x^T x of what every layer with parameters gets:
/// rows of a matrix product, im2col rows of a convolution (in the order of its OIHW weights) at output positions drawn
/// without repetition by seed, layer and image. Memory: D^2 floats a layer and the activations of a batch, whatever the
/// number of images. `data` and the fingerprints are left empty. Throws UsageError without images, Interrupted when
/// `on_progress` asks to stop.
Calibration calibrate(Network& network, const Dataset& dataset, const Preprocess& preprocess,
                      CalibrationOptions options, const OnProgress& on_progress = {});

/// Checksums that tell one data set, one float model from another.
std::string fingerprint_of(const Dataset& dataset);
std::string fingerprint_of(const StateDict& model);

/// Writes the upper triangles and the rest as safetensors, atomically.
void save_calibration(const std::filesystem::path& path, const Calibration& calibration);
/// Throws IoError or FormatError naming the file; UsageError when it was measured on another model than `model`.
/// Nothing larger than the model asks for is allocated.
Calibration load_calibration(const std::filesystem::path& path, const StateDict& model);

}  // namespace nibblenet
