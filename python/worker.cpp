#include "python/worker.h"

#include <nanobind/stl/string.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <thread>
#include <utility>

#include "engine/core/error.h"
#include "tools/common/interrupts.h"
#include "tools/common/progress.h"

namespace nibblenet::python {
namespace nb = nanobind;

namespace {

/// How long either side of a call looks for the other before it sleeps: to be woken takes up to 50
/// microseconds, and passes of small networks take about a hundred.
constexpr std::chrono::microseconds patience{200};

/// Looks until `ready` says yes, for a short while. Threads that compute may have the processor.
template <class Ready>
void look_for(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!ready() && std::chrono::steady_clock::now() < end) sched_yield();
}

}  // namespace

Worker& Worker::instance() {
  static auto* worker = new Worker;
  return *worker;
}

Worker::Worker() : process_(getpid()) {
  tools::show_progress_by([this](const std::string& label, const std::string& unit, int64_t done, int64_t total) {
    const std::lock_guard lock(mutex_);
    report_ = {label, unit, done, total};
  });
}

void Worker::start() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread([this] { serve(); }).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  started_ = true;
}

void Worker::serve() {
  for (;;) {
    look_for([this] { return count_waiting_ > 0; });
    std::unique_lock lock(mutex_);
    asked_.wait(lock, [this] { return !waiting_.empty(); });
    current_ = waiting_.front();
    waiting_.pop_front();
    --count_waiting_;
    report_.reset();
    tools::ask_to_stop(closing_);
    lock.unlock();
    try {
      (*current_->work)();
    } catch (...) {
      current_->error = std::current_exception();
    }
    lock.lock();
    current_->done = true;
    current_ = nullptr;
    lock.unlock();  // or who wakes up would wait again
    answered_.notify_all();
  }
}

void Worker::run(const std::function<void()>& work, const nb::object& progress) {
  if (getpid() != process_)
    throw Error("nibblenet does not work in a forked process: start processes by multiprocessing's 'spawn'");
  Job job{.work = &work};
  const auto ask = [&] {
    {
      const std::lock_guard lock(mutex_);
      if (closing_) throw Error("the interpreter exits: nibblenet takes no more calls");
      if (!started_) start();
      ++calls_;
      waiting_.push_back(&job);
      ++count_waiting_;
    }
    asked_.notify_one();
  };
  std::exception_ptr raised;
  for (bool done = false, asked = false; !done;) {
    {
      const nb::gil_scoped_release released;
      if (!std::exchange(asked, true)) {
        ask();
        look_for([&] { return job.done.load(); });
      }
      wait_briefly(job);
    }
    if (!raised) {
      try {
        if (PyErr_CheckSignals() != 0) nb::raise_python_error();
        if (!progress.is_none()) show(progress);
      } catch (...) {
        raised = std::current_exception();
        stop(job);
      }
    }
    const std::lock_guard lock(mutex_);
    done = job.done;
    if (done) --calls_;
  }
  answered_.notify_all();
  if (raised) std::rethrow_exception(raised);
  if (job.error) std::rethrow_exception(job.error);
}

void Worker::wait_briefly(Job& job) {
  std::unique_lock lock(mutex_);
  answered_.wait_for(lock, std::chrono::milliseconds(50), [&] { return job.done.load(); });
}

void Worker::stop(Job& job) {
  const nb::gil_scoped_release released;
  const std::lock_guard lock(mutex_);
  if (&job == current_) tools::ask_to_stop(true);
  if (std::erase(waiting_, &job) == 0) return;
  --count_waiting_;
  job.done = true;
}

void Worker::show(const nb::object& progress) {
  std::optional<Report> report;
  {
    const std::lock_guard lock(mutex_);
    std::swap(report, report_);
  }
  if (report) progress(report->label, report->unit, report->done, report->total);
}

void Worker::shut_down() {
  if (getpid() != process_) return;
  const nb::gil_scoped_release released;
  std::unique_lock lock(mutex_);
  closing_ = true;
  tools::ask_to_stop(true);
  answered_.wait(lock, [this] { return calls_ == 0; });
}

}  // namespace nibblenet::python
