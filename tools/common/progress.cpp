#include "tools/common/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "tools/common/command_line.h"
#include "tools/common/standard_streams.h"

namespace nibblenet::tools {
namespace {

/// Characters in a line of the terminal behind the standard error; 0 where that is not known.
size_t terminal_width() {
  winsize size = {};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

ProgressSink& progress_sink() {
  static ProgressSink sink;
  return sink;
}

}  // namespace

void show_progress_by(ProgressSink sink) { progress_sink() = std::move(sink); }

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::min(seconds, 1e9) + 0.5);
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string progress_line(const std::string& label, const std::string& unit, int64_t done, int64_t total, double rate,
                          const std::string& note, size_t width) {
  std::string line = fmt::format("{}: {}/{} {} ({:.0f} %)", label, done, total, unit,
                                 total > 0 ? 100.0 * static_cast<double>(done) / static_cast<double>(total) : 0.0);
  if (rate > 0) line += fmt::format(", {:.1f} {}/s", rate, unit);
  if (rate > 0 && done < total)
    line += fmt::format(", {} left", duration_text(static_cast<double>(total - done) / rate));
  if (!note.empty()) line += ", " + note;
  if (width > 0 && line.size() > width) {
    while (width > 0 && (line[width] & 0xC0) == 0x80) --width;  // does not cut a UTF-8 character
    line.resize(width);
  }
  return line;
}

Progress::Progress(std::string label, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      start_(std::chrono::steady_clock::now()),
      last_(start_),
      terminal_(isatty(STDERR_FILENO) != 0) {}

void Progress::update(int64_t done, int64_t total, const std::string& note) {
  if (progress_sink()) {
    progress_sink()(label_, unit_, done, total);
    return;
  }
  const auto now = std::chrono::steady_clock::now();
  if (first_done_ < 0) first_done_ = done;  // the rate does not count what a resumed run had done before
  const auto pause = terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10'000);
  if (now - last_ < pause) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done - first_done_) / seconds;
  // The last column stays free: a full line would wrap.
  const size_t columns = terminal_ ? terminal_width() : 0;
  const std::string line = progress_line(label_, unit_, done, total, rate, note, columns > 1 ? columns - 1 : 0);
  write_progress(terminal_ ? "\r\033[K" + line : line + "\n");
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
