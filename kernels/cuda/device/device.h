#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend_memory.h"

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace nibblenet {

/// Why CUDA cannot be used here, in one line; nothing when there is a GPU.
std::optional<std::string> cuda_problem();
/// Makes a GPU the current device of this thread: GPU `number`, modulo how many there are. Throws
/// CudaError where there is none.
void choose_gpu(int number);

/// Cost of an operation: the least bytes and operations. It is stated nowhere else; benchmarks
/// divide by it.
struct Work {
  double bytes = 0;  ///< operands read once and results written once
  double flops = 0;  ///< a multiplication and an addition count two
  Work& operator+=(const Work& other) {
    bytes += other.bytes;
    flops += other.flops;
    return *this;
  }
};

class Event;

/// An ordered queue of work on the current device: one of its own, never the default stream, or
/// somebody else's. Move-only.
class Stream {
 public:
  Stream();
  /// A stream of somebody else in this process, which must outlive this object; null is the default
  /// stream. It gets no PDL: a kernel of ours may read weights before it waits for the kernel in
  /// front, which may write them if it is not ours.
  explicit Stream(CUstream_st* lent);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  CUstream_st* get() const { return stream_; }
  /// Compute capability, times 10, that the kernels which this device runs were compiled for.
  int compiled_for() const { return compiled_for_; }
  /// Whether launches that ask for PDL get it: it is allowed, and the code waits.
  bool uses_pdl() const { return pdl_ && !lent_ && compiled_for_ >= 90; }
  void allow_pdl(bool allowed) { pdl_ = allowed; }
  /// Whether kernels may form thread block clusters: they are allowed, and the code has them.
  bool uses_clusters() const { return clusters_ && compiled_for_ >= 90; }
  void allow_clusters(bool allowed) { clusters_ = allowed; }
  /// Waits until all queued work is done. Throws CudaError for errors in it.
  void synchronize();
  /// Work that is queued from here on waits until the event's stream has reached it. Throws
  /// CudaError.
  void wait(const Event& event);

  /// Adds the work of a launch to the stream's sum.
  void count(const Work& work) {
    work_ += work;
    ++launches_;
  }
  const Work& work() const { return work_; }
  int64_t launches() const { return launches_; }

 private:
  CUstream_st* stream_ = nullptr;
  bool lent_ = false;
  int compiled_for_ = 0;
  bool pdl_ = true;
  bool clusters_ = true;
  Work work_;
  int64_t launches_ = 0;
};

/// A point in a stream, with its time. Move-only.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  /// Records the stream's position; waits until the stream reaches it; asks whether it has. All
  /// throw CudaError.
  void record(Stream& stream);
  void synchronize();
  bool reached() const;
  /// Milliseconds from `start` to this event. Requires that the stream reached both.
  float since(const Event& start) const;
  CUevent_st* get() const { return event_; }

 private:
  CUevent_st* event_ = nullptr;
};

/// A CUDA graph: work captured from a stream, and replayed by one call. For small batches,
/// launching costs more than computing.
class Graph {
 public:
  /// Captures what `queue_work` queues on the stream, without running it. `queue_work` must not
  /// synchronise.
  template <class QueueWork>
  Graph(Stream& stream, QueueWork&& queue_work) {
    begin(stream);
    try {
      queue_work();
    } catch (...) {
      abandon(stream);
      throw;
    }
    end(stream);
  }
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Queues the graph on the stream. Throws CudaError.
  void launch(Stream& stream);
  /// Number of nodes: kernels, copies and so on.
  int64_t nodes() const { return nodes_; }

 private:
  static void begin(Stream& stream);
  static void abandon(Stream& stream) noexcept;
  void end(Stream& stream);
  CUgraphExec_st* graph_ = nullptr;
  int64_t nodes_ = 0;
};

/// The current CUDA device. Throws CudaError when it cannot be used.
class Device {
 public:
  Device();
  /// "NVIDIA H200, compute capability 9.0, 132 SMs, CUDA 13.0, driver API 13.0"
  const std::string& description() const { return description_; }
  /// Tells GPUs apart, parts of one that MIG made included: its UUID.
  const std::string& id() const { return id_; }
  /// As CUDA counts those of this process.
  int number() const { return number_; }
  DeviceMemory memory() const;
  /// Whether the GPU has wgmma, and our kernels were compiled for it.
  bool has_wgmma() const { return has_wgmma_; }
  size_t l2_bytes() const { return l2_bytes_; }

  /// At least 256-byte aligned. Throws CudaError with the sizes when there is not enough.
  void* allocate(size_t bytes);
  void deallocate(void* data) noexcept;

 private:
  std::string description_;
  std::string id_;
  int number_ = 0;
  bool has_wgmma_ = false;
  size_t l2_bytes_ = 0;
};

/// Queues a copy to the device, or within it. Host memory may be changed once the call returns.
void copy_to_device(void* destination, const void* host, size_t bytes, Stream& stream);
/// Copies to the host: waits for all queued work, and for the copy.
void copy_from_device(void* host, const void* source, size_t bytes, Stream& stream);
void copy_on_device(void* destination, const void* source, size_t bytes, Stream& stream);
void fill_zero(void* destination, size_t bytes, Stream& stream);

/// A copy of host values in device memory; an empty buffer for no values.
template <class T>
Buffer<T> resident_copy(MemoryResource& memory, const std::vector<T>& source, MemoryCategory category, Stream& stream) {
  if (source.empty()) return {};
  Buffer<T> buffer(memory, source.size(), category);
  copy_to_device(buffer.data(), source.data(), buffer.bytes(), stream);
  return buffer;
}

}  // namespace nibblenet
