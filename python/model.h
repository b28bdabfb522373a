#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/json.h"
#include "engine/io/state_dict.h"
#include "layers/network/evaluate.h"
#include "layers/network/image_batch.h"
#include "layers/network/network.h"
#include "layers/network/pass.h"
#include "python/gpu_caller.h"
#include "python/pace.h"
#include "python/planes.h"
#include "tools/common/command_line.h"

namespace nibblenet::python {

/// A model of the Python package: its parameters on the host, and a network of a copy of them from
/// the first call that computes. On the CPU the network then holds the codes of packed weights
/// alone. Every function throws Error after close(). The Worker runs all but the constructor's
/// caller, so that no two calls meet.
class Model {
 public:
  /// Takes a dict of any source (tools::prepare_model()).
  Model(StateDict dict, std::string title, tools::DeviceOptions device);
  /// Reads a file by tools::load_model().
  static std::unique_ptr<Model> load(const std::filesystem::path& path, const Reading& reading,
                                     tools::DeviceOptions device);
  /// A float copy, to be packed.
  std::unique_ptr<Model> float_copy();

  /// Packs by the options of tools/pack. Returns "gptq" and what else its JSON says of the packing.
  nlohmann::json pack(const std::vector<std::string>& arguments);
  /// Rounds the weights as eval --simulate and --repair do. Returns "simulation" of its JSON.
  nlohmann::json simulate(const std::string& scheme, const std::string& repair);
  /// Writes the file that tools/pack would, and takes the sizes of the written one. Nothing for
  /// `compress`: as pack's options say, or the file that was read.
  void save(const std::filesystem::path& path, std::optional<bool> compress);

  /// The ledger, as "size" in the tools' JSON.
  nlohmann::json size();
  /// "precision", "divergence", "divergence_images", "layer_precisions" as in the tools' JSON, and
  /// "notes", the lines that the tools print.
  nlohmann::json precision();
  /// "network", "classes" (names), "image_size", "packed", "device", "metadata".
  nlohmann::json description();
  /// Names, shapes, schemes and metadata. Codes may be the network's alone: parameter() has them.
  const StateDict& dict();
  /// A copy of a parameter. Throws FormatError when there is none of this name.
  Parameter parameter(const std::string& name);
  /// A copy of everything.
  StateDict whole_dict();

  /// Logits [N, classes] of prepared images [N, 3, S, S] in host memory, `batch` at a time. Those
  /// that lie as [N, S, S, 3] are read in place, others copied.
  Tensor<float> logits(const Planes<const float>& images, int64_t batch);
  /// Logits of RGB images [N, height, width, 3], which are prepared like the tools' images.
  Tensor<float> logits(TensorView<const uint8_t> images, int64_t batch);
  /// What logits() of such images is expected to take, by what it took before; infinite where it is
  /// not the CPU that computes. Any thread may ask.
  Brevity brevity_of(const Planes<const float>& images) const;
  Brevity brevity_of(TensorView<const uint8_t> images) const;
  /// Seconds that the last logits() of floats and of bytes took, for tests.
  std::pair<double, double> last_seconds() const { return {pace_of_floats_.last(), pace_of_bytes_.last()}; }
  /// Writes logits [N, classes] of prepared or RGB images to `y`, all in a GPU's memory, in the
  /// order of the caller's stream. Returns when the work is queued. Throws UsageError when the
  /// model is not on this GPU.
  void logits_on_gpu(TensorView<float> y, TensorView<const float> images, int64_t batch, GpuCaller caller);
  void logits_on_gpu(TensorView<float> y, TensorView<const uint8_t> images, int64_t batch, GpuCaller caller);
  /// The number of logits of an image on a GPU. Throws UsageError when the model is on another
  /// device.
  int64_t classes_on(int gpu);
  /// evaluate() as tools/eval does it. Labels are matched by the names of classes, unless
  /// `asked_for` is nothing (DataSource::asked_for()). `fold_first` is eval's.
  Evaluation evaluate(Dataset& data, int64_t batch, int image_size, std::optional<bool> asked_for, bool fold_first);

  /// Frees everything.
  void close();

 private:
  /// A pass, and room for its images.
  struct Runner {
    Pass pass;
    ImageBatch images;
    int64_t size;
    int64_t batch;
    std::optional<ImageBatch> resident;  ///< of bytes on the GPU, of the size below
    ImageSize resident_size = {};
  };

  void expect_open() const;
  /// Frees what the network holds too, if it lies in the host's memory: codes, scales, zero points
  /// and block ids. Their schemes, shapes and codebooks stay.
  void let_codes_go();
  Backend& backend();
  Network& network();
  Runner& runner(int64_t size, int64_t batch);
  Preprocess preparation_of(const Shape& images) const;
  template <class Prepare, class Use>
  void infer(int64_t images, int64_t size, int64_t batch, Prepare prepare, Use use);
  template <class Prepare>
  Tensor<float> logits_of(Pace& pace, const Shape& given, int64_t size, int64_t batch, Prepare prepare);
  template <class Prepare>
  void logits_in_order(TensorView<float> y, int64_t images, int64_t size, int64_t batch, GpuCaller caller,
                       Prepare prepare);

  std::optional<StateDict> dict_;
  bool codes_let_go_ = false;
  std::string title_;
  tools::DeviceOptions device_;
  std::filesystem::path file_;
  bool compress_ = false;   ///< what save() does unless told
  double file_target_ = 0;  ///< MB, which the packed file may take; 0: any size
  std::unique_ptr<Backend> backend_;
  std::optional<Network> network_;
  PrecisionChoice choice_;  ///< of network_
  std::optional<Runner> runner_;
  Pace pace_of_floats_;  ///< of logits() on the CPU
  Pace pace_of_bytes_;
};

}  // namespace nibblenet::python
