#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/json.h"
#include "engine/io/state_dict.h"
#include "tests/support/golden.h"

namespace nibblenet::testing {

/// How a program ended and what it said.
struct Outcome {
  int code = -1;   ///< exit code; -1 when a signal ended it
  int signal = 0;  ///< the signal that ended it, else 0
  std::string out;
  std::string err;
};
std::ostream& operator<<(std::ostream& stream, const Outcome& outcome);

/// A running program. Its output goes to files beside `scratch`, so that no pipe can fill up.
class Child {
 public:
  /// `arguments[0]` is the program's path; `environment` are "NAME=value" that replace or follow
  /// our own.
  Child(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
        const std::vector<std::string>& environment, const std::string& scratch, const std::string& output = "");
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// Until the standard output holds `text`; false when the program ended (or five minutes passed)
  /// without it.
  bool wait_for(const std::string& text);
  /// Until the program's first thread blocks `signal`; false when it ended without that.
  bool wait_until_blocks(int signal);
  bool running() { return !ended(); }
  pid_t id() const { return process_; }
  void send(int signal) const;
  Outcome wait();

 private:
  bool ended();

  std::string output_;
  std::string errors_;
  pid_t process_ = 0;
  int status_ = 0;
  bool reaped_ = false;
};

inline constexpr int64_t small_weights = 37'669;  ///< of small.safetensors

/// A project's root of its own for every test, in which the tools run:
///   standin/            200 training and 100 test images
///   small.safetensors   an AlexNet of small_weights weights, for images of 64 x 64
///   seven.safetensors   the same with a head of 7 classes
class ToolsTest : public ::testing::Test {
 protected:
  void SetUp() override;

  std::filesystem::path at(const std::string& name) const { return folder_.path() / name; }
  StateDict model(const std::string& name) const { return load_state_dict(at(name)); }
  nlohmann::json json(const std::string& name) const;

  /// "pack small.safetensors --bits 4": the built tool of that name, its arguments split at spaces
  /// outside of "".
  std::vector<std::string> command(const std::string& line) const;
  Outcome run(const std::string& line, const std::string& output = "") const;
  /// run() that must succeed.
  Outcome succeed(const std::string& line) const;
  /// run() that must end with `code` and one line of the tool's that holds `mention`.
  void refuse(const std::string& line, const std::string& mention, int code) const;

  std::vector<std::string> environment_;
  std::string tools_;  ///< folder of the built tools

 private:
  TemporaryFolder folder_;
};

/// Contents of a file, whole.
std::string read_text(const std::filesystem::path& path);
void write_text(const std::filesystem::path& path, const std::string& text);

/// The first line of a text, without its end.
std::string first_line(const std::string& text);

}  // namespace nibblenet::testing
