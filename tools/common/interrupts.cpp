#include "tools/common/interrupts.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <string_view>
#include <thread>

#include "tools/common/standard_streams.h"

namespace nibblenet::tools {
namespace {

std::atomic<bool> asked_to_stop = false;

/// No handler may run on the stack of a thread that computes: oneDNN's sgemm keeps its stack
/// pointer inside a block of the heap, and the kernel would write the handler's frame there.
[[noreturn]] void take_signals(sigset_t signals) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point first;
  for (int signal = 0;;) {
    if (sigwait(&signals, &signal) != 0) continue;
    if (!asked_to_stop.exchange(true)) {
      first = Clock::now();
      constexpr std::string_view notice = "\nstopping; once more ends at once and saves nothing\n";
      if (isatty(STDERR_FILENO) != 0) (void)!write(STDERR_FILENO, notice.data(), notice.size());
    }
    // timeout(1) sends every signal twice; so does a terminal that closes.
    if (signal == SIGHUP || Clock::now() - first < std::chrono::milliseconds(100)) continue;
    std::signal(signal, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    std::raise(signal);
  }
}

}  // namespace

void catch_interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  struct sigaction hangup = {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaddset(&signals, SIGHUP);  // nohup wants it ignored
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread(take_signals, signals).detach();
}

void ask_to_stop(bool stop) { asked_to_stop = stop; }

bool interrupted() { return asked_to_stop || standard_output_error() == EPIPE; }

}  // namespace nibblenet::tools
