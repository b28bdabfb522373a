#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "python/pace.h"

namespace nibblenet::python {

/// The thread that does the module's work, one call after the other, with all signals blocked. No
/// handler may run on a stack that computes: oneDNN keeps its stack pointer inside a block of the
/// heap. The threads of OpenMP that it starts inherit the mask.
class Worker {
 public:
  /// The process's only one. It is never destroyed: its thread outlives main.
  static Worker& instance();

  /// Does `work` there and waits without the GIL. Both threads look for each other for a short
  /// while before they sleep: a call takes microseconds beyond its work. Twenty times a second it
  /// looks for signals and calls progress(label, unit, done, total) unless it is None. Throws what
  /// `work` throws. If a handler or `progress` raises, it stops the work and throws that. Throws
  /// Error in a forked child and when the interpreter exits. `seconds` is what the work is expected
  /// to take, if anybody knows. Requires: the GIL.
  void run(const std::function<void()>& work, const nanobind::object& progress = nanobind::none(),
           double seconds = INFINITY);

  /// The same for work of one thread that is over before run() would look for signals, which then
  /// wait: the calling thread does it, unless other work runs or its stack is small. To hand work
  /// over and to wait for it takes longer than all else of a call. Work of several threads stays
  /// with the worker: OpenMP would keep more of them for each thread that called, and all together
  /// would be more than there are processors. Requires: the GIL.
  void run_short(const std::function<void()>& work, Brevity brevity);

  /// Stops the work and waits until every call has returned; later ones throw Error. For atexit: a
  /// thread that takes the GIL after the interpreter is gone ends the process.
  void shut_down();

 private:
  /// A call's work, on the caller's stack.
  struct Job {
    const std::function<void()>* work;
    std::exception_ptr error;
    std::atomic<bool> done = false;
  };
  /// The last report of progress.
  struct Report {
    std::string label;
    std::string unit;
    int64_t done = 0;
    int64_t total = 0;
  };

  Worker();
  void start();
  [[noreturn]] void serve();
  bool run_here(const std::function<void()>& work);
  static void look_for_end(const Job& job, double seconds);
  void wait_briefly(Job& job);
  void stop(Job& job);
  void show(const nanobind::object& progress);

  const int process_;
  std::mutex computing_;              ///< held by the thread that does work
  std::mutex mutex_;                  ///< guards what follows
  std::condition_variable asked_;     ///< there is work
  std::condition_variable answered_;  ///< work is done, or a call has returned
  std::deque<Job*> waiting_;
  std::atomic<int> count_waiting_ = 0;  ///< changed with waiting_, and read without the mutex
  Job* current_ = nullptr;
  bool started_ = false;
  bool closing_ = false;
  int calls_ = 0;
  std::optional<Report> report_;
};

/// What `work` returns, by Worker::run_short().
template <class Work>
auto briefly(Brevity brevity, Work work) {
  std::optional<decltype(work())> result;
  Worker::instance().run_short([&] { result.emplace(work()); }, brevity);
  return std::move(*result);
}

/// What `work` returns, from the worker.
template <class Work>
auto on_worker(Work work, const nanobind::object& progress = nanobind::none()) {
  std::optional<decltype(work())> result;
  Worker::instance().run([&] { result.emplace(work()); }, progress);
  return std::move(*result);
}

/// Seconds of each of so many calls of work() on the worker, with a pause in seconds in front of
/// each: what tests compare a call from Python with. Stops when it is asked to.
std::vector<double> seconds_of_calls(int calls, double pause, const std::function<void()>& work);

}  // namespace nibblenet::python
