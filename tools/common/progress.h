#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace nibblenet::tools {

/// "1:02:03" or "2:03".
std::string duration_text(double seconds);

/// "label: 3/10 units (30 %), 1.5 units/s, 0:05 left, note", cut to `width` characters; 0: not cut.
/// Without a rate there is no time left.
std::string progress_line(const std::string& label, const std::string& unit, int64_t done, int64_t total, double rate,
                          const std::string& note, size_t width);

/// One line on the standard error that shows how far long work has come: done, total, rate and time
/// left. Redrawn in place on a terminal, printed every ten seconds elsewhere.
class Progress {
 public:
  /// Progress of `label`, counted in `unit`.
  Progress(std::string label, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Prints the state, at most a few times a second.
  void update(int64_t done, int64_t total, const std::string& note = "");
  /// As update(). True when the user has asked to stop: this makes it an OnProgress.
  bool operator()(int64_t done, int64_t total);
  /// As update(). Throws Stopped when the user has asked to stop and nothing is written yet.
  void update_or_stop(int64_t done, int64_t total, const std::string& note = "");
  /// Removes or completes the line; what is printed next starts on a fresh one.
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
