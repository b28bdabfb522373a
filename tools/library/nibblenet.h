#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

/// The version of this header. nibblenet::library_version() is that of the library.
#define NIBBLENET_VERSION_MAJOR 0
#define NIBBLENET_VERSION_MINOR 1
#define NIBBLENET_VERSION_PATCH 0

/// Marks what the shared library exports: all else is hidden.
#define NIBBLENET_EXPORT __attribute__((visibility("default")))

/// nibblenet in other programs: loads a float or packed model and runs it. The header needs C++17
/// and no other header of nibblenet.
namespace nibblenet {

/// The version of the library: "0.1.0".
NIBBLENET_EXPORT std::string library_version();

/// A class that an image may show.
struct Prediction {
  int64_t label = 0;
  std::string name;       ///< of the class: "airplane"
  float probability = 0;  ///< 0 to 1, over all classes
};

/// The result of a model on a data set.
struct Score {
  int64_t images = 0;
  int64_t correct = 0;
  double loss = 0;   ///< mean cross-entropy
  std::string data;  ///< "CIFAR-10 (binary)", "image folder", or "stand-in", whose images are drawn
  std::string note;  ///< how labels were matched with the model's classes; empty: the lists are equal

  /// The share of correct images, 0 to 1.
  double accuracy() const { return images == 0 ? 0.0 : static_cast<double>(correct) / static_cast<double>(images); }
};

/// The size of one layer, weight and bias, or of all.
struct LayerSize {
  std::string layer;           ///< "features.0"; "total"
  std::string scheme;          ///< "linear:4:channel", "float32"; "mixed"
  int64_t weights = 0;         ///< how many
  double bits_per_weight = 0;  ///< of its codes, scales and what else its scheme stores; float: 32
  double estimated = 0;        ///< bytes by the usual formula: codes and scales
  int64_t file = 0;            ///< bytes in the file
  int64_t resident = 0;        ///< bytes in the device's memory
};

/// The sizes of a model.
struct Ledger {
  std::vector<LayerSize> layers;
  LayerSize total;         ///< of the layers
  int64_t file_bytes = 0;  ///< of the whole file, its header included
};

/// Hears how many images are done, and their total. Returns true to stop.
using OnProgress = std::function<bool(int64_t done, int64_t total)>;

/// A model that is resident on a device.
///
/// Errors: every function throws std::runtime_error, whose what() is one line: what is wrong and
/// what to do. It throws for a model that was moved from. What loads or computes throws in a
/// process that was forked from one that has used nibblenet.
///
/// Threads: any thread may use a model, but not while it is moved or destroyed. A model computes on
/// a thread of its own, and on a team of OpenMP from there, one call after the other. Models are
/// independent. Results are the same bits for the same number of threads and images a call.
///
/// Signals: none is handled on a model's threads, and a call may be interrupted by handlers of the
/// caller's.
class NIBBLENET_EXPORT Model {
 public:
  /// Loads a model from a file: packed or float safetensors, or a PyTorch state dict. `device` is
  /// "cpu", "cuda", "cudnn" (NVIDIA's libraries, to compare with), or "auto": the GPU where this
  /// build and machine have one, else the CPU. `threads` is 1 to 1024, or 0: OMP_NUM_THREADS, else
  /// the processors that the process may use. `precision` is "float32", "float16" (GPU), "bfloat16"
  /// or "int8" (CPU); "auto": on the CPU the fastest whose measured divergence from float32 is at
  /// most 0.0005, on a GPU float16; or "": float32 on the CPU, float16 on a GPU.
  explicit Model(const std::string& file, const std::string& device = "auto", int threads = 0,
                 const std::string& precision = "");
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  /// The name of the network: "AlexNet".
  std::string network() const;
  /// The device in words: "CPU, 2 threads, oneDNN 2.6.3, AVX2".
  std::string device() const;
  /// The precision that it computes in: "float32". With "auto" and "int8", single layers may take
  /// another one; notes() says so.
  std::string precision() const;
  /// The side of the network's input in pixels.
  int image_size() const;
  /// The names of the classes, in label order.
  std::vector<std::string> classes() const;
  /// What loading tolerated or chose, one line each: weights taken of several, folded batch norms,
  /// what a narrow precision costs.
  std::vector<std::string> notes() const;

  /// The logits [images, classes], row by row, of RGB images [images, height, width, 3], rows from
  /// the top. Each is resized, cropped to its middle and normalised as tools/eval does it. An image
  /// has at least one pixel, at most 2^20 a side and 100 million in all. Logits are NaN or infinite
  /// where weights overflow; classify() and evaluate() throw then.
  std::vector<float> logits(const uint8_t* rgb, int64_t images, int64_t height, int64_t width);
  /// The `top` likeliest classes of one such image, the likeliest first; all where `top` is larger.
  std::vector<Prediction> classify(const uint8_t* rgb, int64_t height, int64_t width, int64_t top = 1);
  /// The same of a JPEG, PNG or BMP file of up to 64 MiB.
  std::vector<Prediction> classify(const std::string& image_file, int64_t top = 1);
  /// The accuracy on the test images of a data set: CIFAR-10, or an image folder, plain or in a
  /// .tar or .tar.gz. Labels are matched by the classes' names. `limit` above 0 takes the first
  /// limit / classes images of every class. Runs 128 images at a time, and calls `progress` before
  /// each time, on the model's thread. What `progress` throws passes through; it cannot use the
  /// model.
  Score evaluate(const std::string& data, int64_t limit = 0, const OnProgress& progress = {});

  /// The sizes by layer: estimated, in the file, in the device's memory.
  Ledger ledger() const;

 private:
  struct Computer;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace nibblenet
