#pragma once

#include <memory>
#include <optional>
#include <string>

#include "kernels/backend_memory.h"
#include "kernels/borrowed_weight.h"
#include "kernels/image_preparation.h"
#include "kernels/inference.h"
#include "kernels/quantizer.h"
#include "kernels/recording.h"
#include "kernels/stream_order.h"
#include "kernels/training.h"

namespace nibblenet {

/// What a device's driver says of it at one moment.
struct DeviceState {
  std::string driver;  ///< its version
  int sm_mhz = 0;
  int memory_mhz = 0;
  double watts = 0;
  int celsius = 0;
};

/// A kind of device: its memory, and the operations on it. Each base class is a small interface in
/// its own header. A backend that only infers implements the pure functions, fewer than 20 in all;
/// one that trains implements Training too.
class Backend : public BackendMemory,
                public Inference,
                public ImagePreparation,
                public Recorder,
                public StreamOrder,
                public Quantizer {
 public:
  virtual std::string name() const = 0;         ///< the value of --device: "cpu", "cuda", "cudnn"
  virtual std::string description() const = 0;  ///< for reports: device, library, threads
  /// Makes the calling thread compute as this backend does: with its threads, on its GPU. Call it
  /// where several backends take turns on a thread, whose constructors set these for all.
  virtual void take_turn() {}
  /// Tells the devices of a machine apart; nothing where it is the processor.
  virtual std::optional<std::string> device_id() const { return std::nullopt; }
  /// Throws UsageError for a precision of activations that the backend does not compute in.
  virtual void expect_support(Precision precision) const = 0;
  /// The precision in which inference is fastest.
  virtual Precision preferred_precision() const { return Precision::float32; }
  /// Whether the device computes in this precision with instructions of its own, so that it can be
  /// chosen for speed. Implies support where activations are float32 between layers.
  virtual bool has_fast(Precision precision) const { return storage_of(precision) == precision; }

  /// Energy of the device in J since an arbitrary moment, other processes included. Returns nothing
  /// where the device has no counter.
  virtual std::optional<double> joules() { return std::nullopt; }
  /// Driver, clocks, power and temperature of the device now. Returns nothing where no driver tells
  /// them.
  virtual std::optional<DeviceState> state() { return std::nullopt; }
  /// Bytes to write in the backend's memory so that its caches hold nothing older.
  virtual size_t bytes_that_empty_caches() const { return size_t{256} << 20; }

  /// The route on a backend that fuses nothing, and has one kernel for every product.
  std::optional<ForwardRoute> route(const Weight&, const ForwardQuestion& question) const override {
    if (question.pool.size > 0) return std::nullopt;
    return ForwardRoute{name()};
  }

  /// The operations of training. Throws UsageError where the backend only infers.
  Training& training() {
    if (auto* operations = dynamic_cast<Training*>(this)) return *operations;
    fail<UsageError>("--device {} runs forward passes only and has no gradients; use --device cpu", name());
  }
};

/// Makes a backend. device: "cpu", "cuda", "cudnn" (NVIDIA's libraries, to compare with) or "auto"
/// (CUDA when this build has it and there is a GPU, else the CPU). `threads` 0: default_threads().
/// `gpu`: which GPU, counted modulo how many there are; CUDA's current device of this thread.
/// When "auto" means the CPU in a build that could use a GPU, the description says why. Throws
/// UsageError for a device that this build or machine does not have.
std::unique_ptr<Backend> make_backend(const std::string& device, int threads, int gpu = 0);
/// Makes a CUDA backend that queues its work on a stream of somebody else (StreamOrder), which must
/// outlive it. Throws UsageError as make_backend() does.
std::unique_ptr<Backend> make_backend_on_stream(int gpu, uintptr_t stream);
/// A weight of what this tensor holds, whose parts lie elsewhere in best_layout(). It copies what
/// it needs of them. Throws UsageError when this build has no CUDA backend.
std::unique_ptr<BorrowedWeight> borrow_weight(const PackedTensor& packed);
/// Whether this build has the CUDA backend.
bool built_with_cuda();
/// Why "auto" means the CPU here, in one line; nothing when it means the GPU.
std::optional<std::string> cuda_unusable();

}  // namespace nibblenet
