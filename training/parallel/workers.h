#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/io/block_share.h"
#include "kernels/cpu/backend_cpu.h"

namespace nibblenet {

/// Threads that compute blocks side by side, each on a CPU backend of its own. What
/// belongs to a worker's backend is made, used and destroyed on that worker's thread: oneDNN binds
/// memory of its primitives to the thread that made them.
class Workers {
 public:
  /// Starts so many workers, whose backends have `threads` threads each.
  explicit Workers(int workers, int threads = 1);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int count() const { return static_cast<int>(backends_.size()); }
  CpuBackend& backend(int worker) { return *backends_[static_cast<size_t>(worker)]; }
  /// Largest sum of bytes that the workers' backends held.
  size_t peak_bytes() const;

  /// Calls work(worker, item) for every item, which are handed out in order, on the workers'
  /// threads. Waits for all. Rethrows the exception of the smallest item that threw.
  void run(IndexRange items, const std::function<void(int worker, int64_t item)>& work);
  /// Calls work(worker) once on every worker's thread.
  void on_each(const std::function<void(int worker)>& work);

 private:
  void live(int worker);
  void start_and_wait();

  std::vector<std::unique_ptr<CpuBackend>> backends_;
  std::mutex mutex_;  ///< guards all below
  std::condition_variable changed_;
  const std::function<void(int, int64_t)>* work_ = nullptr;
  bool each_ = false;  ///< every worker takes the item of its own number
  IndexRange items_;   ///< not handed out yet
  int64_t round_ = 0;  ///< of run() and on_each()
  int busy_ = 0;       ///< workers that have not finished the round
  bool stop_ = false;
  int64_t failed_item_ = 0;
  std::exception_ptr error_;
  std::vector<std::thread> threads_;
};

/// An object for every worker, made by make(worker) and destroyed on the worker's thread.
template <class T>
class PerWorker {
 public:
  /// Makes the objects, each on its worker's thread. `workers` must outlive them.
  PerWorker(Workers& workers, const std::function<std::unique_ptr<T>(int worker)>& make)
      : workers_(workers), objects_(static_cast<size_t>(workers.count())) {
    workers.on_each([&](int worker) { objects_[static_cast<size_t>(worker)] = make(worker); });
  }
  ~PerWorker() {
    workers_.on_each([this](int worker) { objects_[static_cast<size_t>(worker)].reset(); });
  }
  PerWorker(const PerWorker&) = delete;
  PerWorker& operator=(const PerWorker&) = delete;
  T& operator[](int worker) { return *objects_[static_cast<size_t>(worker)]; }

 private:
  Workers& workers_;
  std::vector<std::unique_ptr<T>> objects_;
};

}  // namespace nibblenet
