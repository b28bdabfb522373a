#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace nibblenet::tools {

/// "1:02:03" or "2:03".
std::string duration_text(double seconds);

/// "label: 3/10 units (30 %), 1.5 units/s, 0:05 left, note". `rate` is in units a second; at 0 the
/// rate and the time left are omitted. `width` is the most characters; 0: any number.
std::string progress_line(const std::string& label, const std::string& unit, int64_t done, int64_t total, double rate,
                          const std::string& note, size_t width);

/// Takes what Progress would print: the name of the work, what is counted, done and total.
using ProgressSink =
    std::function<void(const std::string& label, const std::string& unit, int64_t done, int64_t total)>;
/// Hands progress to `sink` from now on, for a program with a display of its own; empty: prints it.
/// Requires: no Progress is in use.
void show_progress_by(ProgressSink sink);

/// A progress line of long work on the standard error: done, total, rate and time left. On a
/// terminal it is redrawn in place; elsewhere it is printed every ten seconds.
class Progress {
 public:
  /// `label` names the work, `unit` what is counted.
  Progress(std::string label, std::string unit);
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Prints the state, at most a few times a second.
  void update(int64_t done, int64_t total, const std::string& note = "");
  /// Calls update(). Returns true when the user has asked to stop, as an OnProgress does.
  bool operator()(int64_t done, int64_t total);
  /// Calls update(), or throws Stopped when the user has asked to stop. For work that has written
  /// nothing yet: the message says so.
  void update_or_stop(int64_t done, int64_t total, const std::string& note = "");
  /// Removes the line from a terminal, so that other text can follow.
  void finish();

 private:
  std::string label_;
  std::string unit_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_;
  int64_t first_done_ = -1;
  bool terminal_;
  bool drawn_ = false;
};

}  // namespace nibblenet::tools
