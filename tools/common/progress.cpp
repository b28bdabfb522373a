#include "tools/common/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include "tools/common/command_line.h"
#include "tools/common/standard_streams.h"

namespace nibblenet::tools {
namespace {

std::string time_left(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

Progress::Progress(std::string label, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      start_(std::chrono::steady_clock::now()),
      last_(start_),
      terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() { finish(); }

void Progress::update(int64_t done, int64_t total, const std::string& note) {
  const auto now = std::chrono::steady_clock::now();
  if (first_done_ < 0) first_done_ = done;  // what a resumed run had done before does not count for the rate
  const auto pause = terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10'000);
  if (now - last_ < pause) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done - first_done_) / seconds;
  const std::string left = rate > 0 ? time_left(static_cast<double>(total - done) / rate) : "?";
  write_progress(fmt::format("{}{}: {}/{} {} ({:.0f} %), {:.1f} {}/s, {} left{}{}", terminal_ ? "\r\033[K" : "", label_,
                             done, total, unit_,
                             total > 0 ? 100.0 * static_cast<double>(done) / static_cast<double>(total) : 0.0, rate,
                             unit_, left, note.empty() ? "" : ", " + note, terminal_ ? "" : "\n"));
  drawn_ = true;
}

bool Progress::operator()(int64_t done, int64_t total) {
  update(done, total);
  return interrupted();
}

void Progress::update_or_stop(int64_t done, int64_t total, const std::string& note) {
  if (interrupted()) throw Stopped("stopped; nothing was written");
  update(done, total, note);
}

void Progress::finish() {
  if (drawn_ && terminal_) write_progress("\r\033[K");
  drawn_ = false;
}

}  // namespace nibblenet::tools
