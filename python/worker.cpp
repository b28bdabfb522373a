#include "python/worker.h"

#include <nanobind/stl/string.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cfenv>
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

/// Work that is expected to take longer is waited for asleep.
constexpr std::chrono::milliseconds most_patience{2};

/// How often a call that waits looks for signals.
constexpr std::chrono::milliseconds look_out{50};

/// The stack that computing needs; OpenMP's own threads have more.
constexpr size_t stack_bytes = size_t{1} << 20;

double seconds_of(std::chrono::microseconds time) { return std::chrono::duration<double>(time).count(); }

/// Looks until `ready` says yes, for a short while. Threads that compute may have the processor.
template <class Ready>
void look_for(Ready ready, std::chrono::microseconds time = patience) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (!ready() && std::chrono::steady_clock::now() < end) sched_yield();
}

/// The lowest address of the calling thread's stack; null where nobody knows.
const char* end_of_stack() {
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return nullptr;
  void* lowest = nullptr;
  size_t bytes = 0;
  pthread_attr_getstack(&attributes, &lowest, &bytes);
  pthread_attr_destroy(&attributes);
  return static_cast<const char*>(lowest);
}

/// Whether the calling thread's stack has room to compute on.
bool has_room_here() {
  thread_local const char* const lowest = end_of_stack();
  const char here = 0;
  return lowest != nullptr && static_cast<size_t>(&here - lowest) >= stack_bytes;
}

/// For its life, the calling thread computes like the worker, without other threads.
class LikeTheWorker {
 public:
  LikeTheWorker() : threads_(omp_get_max_threads()) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &signals_);
    std::fegetenv(&floats_);
    std::fesetenv(FE_DFL_ENV);
    omp_set_num_threads(1);
  }
  ~LikeTheWorker() {
    omp_set_num_threads(threads_);
    std::fesetenv(&floats_);
    pthread_sigmask(SIG_SETMASK, &signals_, nullptr);
  }
  LikeTheWorker(const LikeTheWorker&) = delete;
  LikeTheWorker& operator=(const LikeTheWorker&) = delete;

 private:
  int threads_;
  sigset_t signals_;
  std::fenv_t floats_;
};

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
  std::fesetenv(FE_DFL_ENV);  // the thread that started this one may flush denormal numbers
  for (;;) {
    look_for([this] { return count_waiting_ > 0; });
    {
      std::unique_lock lock(mutex_);
      asked_.wait(lock, [this] { return !waiting_.empty(); });
    }
    std::unique_lock computing(computing_);
    std::unique_lock lock(mutex_);
    if (waiting_.empty()) continue;  // its caller was stopped
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
    computing.unlock();
    lock.unlock();  // or who wakes up would wait again
    answered_.notify_all();
  }
}

void Worker::run(const std::function<void()>& work, const nb::object& progress, double seconds) {
  if (getpid() != process_)
    throw Error("nibblenet does not work in a forked process: start processes by multiprocessing's 'spawn'");
  Job job{.work = &work};
  {  // with the GIL: a thread without it may not come back once closing_ is set
    const std::lock_guard lock(mutex_);
    if (closing_) throw Error("the interpreter exits: nibblenet takes no more calls");
    if (!started_) start();
    ++calls_;
    waiting_.push_back(&job);
    ++count_waiting_;
  }
  std::exception_ptr raised;
  for (bool done = false, looked = false; !done;) {
    {
      const nb::gil_scoped_release released;
      if (!std::exchange(looked, true)) {
        asked_.notify_one();
        look_for_end(job, seconds);
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

void Worker::run_short(const std::function<void()>& work, Brevity brevity) {
  const bool here = brevity.threads == 1 && brevity.seconds < seconds_of(look_out) && has_room_here();
  if (!here || !run_here(work)) run(work, nb::none(), brevity.seconds);
}

/// Does the work in the calling thread; false where other work runs or waits.
bool Worker::run_here(const std::function<void()>& work) {
  if (getpid() != process_) return false;
  std::unique_lock computing(computing_, std::try_to_lock);
  if (!computing) return false;
  {
    const std::lock_guard lock(mutex_);
    if (closing_ || !waiting_.empty()) return false;
    ++calls_;
    tools::ask_to_stop(false);
  }
  struct Ended {
    Worker& worker;
    ~Ended() {
      {
        const std::lock_guard lock(worker.mutex_);
        --worker.calls_;
      }
      worker.answered_.notify_all();
    }
  };
  const Ended ended{*this};  // with the GIL, or the interpreter could be gone before this thread takes it
  const nb::gil_scoped_release released;
  const LikeTheWorker like_the_worker;
  work();
  computing.unlock();
  return true;
}

/// Looks for the end of work that is expected to take so many seconds, unless that is long.
void Worker::look_for_end(const Job& job, double seconds) {
  auto time = patience;
  if (seconds < seconds_of(most_patience)) time += std::chrono::microseconds(static_cast<int64_t>(1.5e6 * seconds));
  look_for([&] { return job.done.load(); }, time);
}

void Worker::wait_briefly(Job& job) {
  std::unique_lock lock(mutex_);
  answered_.wait_for(lock, look_out, [&] { return job.done.load(); });
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

std::vector<double> seconds_of_calls(int calls, double pause, const std::function<void()>& work) {
  return on_worker([&] {
    std::vector<double> seconds;
    for (int call = 0; call < calls && !tools::interrupted(); ++call) {
      if (pause > 0) std::this_thread::sleep_for(std::chrono::duration<double>(pause));
      const Stopwatch watch;
      work();
      seconds.push_back(watch.seconds());
    }
    return seconds;
  });
}

}  // namespace nibblenet::python
