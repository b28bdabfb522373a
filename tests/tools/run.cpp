#include "tests/tools/run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iomanip>
#include <iterator>
#include <sstream>
#include <thread>

#include "engine/io/dataset.h"
#include "tests/support/small_network.h"

namespace nibblenet::testing {
namespace {

/// Our environment without variables that would change what a tool does, then `added`, which
/// replaces ours. Waiting threads sleep: spinning ones take the cores from each other when tests
/// run side by side, and work of a millisecond takes seconds.
std::vector<std::string> child_environment(const std::vector<std::string>& added) {
  const auto replaced = [&](std::string_view variable) {
    const std::string_view name = variable.substr(0, variable.find('=') + 1);
    return std::ranges::any_of(added, [&](const std::string& each) { return each.starts_with(name); });
  };
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable)
    if (const std::string_view text = *variable;
        !text.starts_with("NIBBLENET_") && !text.starts_with("OMP_WAIT_") && !replaced(text))
      variables.emplace_back(text);
  variables.emplace_back("OMP_WAIT_POLICY=passive");
  variables.insert(variables.end(), added.begin(), added.end());
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

std::ostream& operator<<(std::ostream& stream, const Outcome& outcome) {
  return stream << "exit code " << outcome.code << ", signal " << outcome.signal << "\n--- standard output\n"
                << outcome.out << "--- standard error\n"
                << outcome.err << "---";
}

Child::Child(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
             const std::vector<std::string>& environment, const std::string& scratch, const std::string& output)
    : output_(output.empty() ? scratch + ".out" : output), errors_(scratch + ".err") {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, errors_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
  std::vector<std::string> words = arguments, variables = child_environment(environment);
  // Signals do what they do by default, however this test was started (nohup ignores SIGHUP).
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t signals;
  sigemptyset(&signals);
  posix_spawnattr_setsigmask(&attributes, &signals);
  for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGPIPE, SIGXFSZ}) sigaddset(&signals, signal);
  posix_spawnattr_setsigdefault(&attributes, &signals);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  const int error = posix_spawn(&process_, words[0].c_str(), &actions, &attributes, pointers(words).data(),
                                pointers(variables).data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) fail<IoError>("cannot start {}: {}", words[0], std::generic_category().message(error));
}

Child::~Child() {
  if (ended()) return;
  send(SIGKILL);
  wait();
}

bool Child::ended() {
  if (!reaped_) reaped_ = waitpid(process_, &status_, WNOHANG) == process_;
  return reaped_;
}

bool Child::wait_for(const std::string& text) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(5);
  while (std::chrono::steady_clock::now() < deadline) {
    const bool over = ended();  // asked before reading, so that its last words are not missed
    if (read_text(output_).find(text) != std::string::npos) return true;
    if (over) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

bool Child::wait_until_blocks(int signal) {
  while (running()) {
    const std::string status = read_text(fmt::format("/proc/{}/status", process_));
    const size_t at = status.find("SigBlk:\t");
    if (at != std::string::npos && (std::stoull(status.substr(at + 8), nullptr, 16) >> (signal - 1) & 1) != 0)
      return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

void Child::send(int signal) const { kill(process_, signal); }

Outcome Child::wait() {
  while (!reaped_) {
    const pid_t waited = waitpid(process_, &status_, 0);
    if (waited < 0 && errno != EINTR) fail<IoError>("waitpid: {}", std::generic_category().message(errno));
    reaped_ = waited == process_;
  }
  const bool regular = std::filesystem::is_regular_file(output_);  // not /dev/full
  return {.code = WIFEXITED(status_) ? WEXITSTATUS(status_) : -1,
          .signal = WIFSIGNALED(status_) ? WTERMSIG(status_) : 0,
          .out = regular ? read_text(output_) : "",
          .err = read_text(errors_)};
}

void ToolsTest::SetUp() {
  environment_ = {"NIBBLENET_ROOT=" + folder_.path().string()};
  tools_ = NIBBLENET_TOOLS;
  write_standin(at("standin"), 200, 100, 1);
  for (const auto& [name, classes] : {std::pair{"small.safetensors", 10}, {"seven.safetensors", 7}}) {
    StateDict dict = small_alexnet(1, classes);
    dict.metadata["image_size"] = "64";
    save_state_dict(at(name), dict);
  }
}

nlohmann::json ToolsTest::json(const std::string& name) const { return nlohmann::json::parse(read_text(at(name))); }

std::vector<std::string> ToolsTest::command(const std::string& line) const {
  std::istringstream words(line);
  std::vector<std::string> result;
  for (std::string word; words >> std::quoted(word);) result.push_back(word);
  result[0] = tools_ + "/" + result[0];
  return result;
}

Outcome ToolsTest::run(const std::string& line, const std::string& output) const {
  return Child(command(line), folder_.path(), environment_, at(".run").string(), output).wait();
}

Outcome ToolsTest::succeed(const std::string& line) const {
  Outcome outcome = run(line);
  EXPECT_EQ(outcome.code, 0) << line << ": " << outcome;
  return outcome;
}

void ToolsTest::refuse(const std::string& line, const std::string& mention, int code) const {
  const Outcome outcome = run(line);
  const std::string tool = line.substr(0, line.find(' '));
  SCOPED_TRACE(line);
  EXPECT_EQ(outcome.code, code) << outcome;
  EXPECT_TRUE(outcome.err.starts_with(tool + ": error: ")) << outcome;
  EXPECT_TRUE(outcome.err.ends_with('\n') && std::ranges::count(outcome.err, '\n') == 1) << outcome;
  EXPECT_NE(outcome.err.find(mention), std::string::npos) << "expected a mention of " << mention << "; " << outcome;
}

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) fail<IoError>("cannot write {}", path.string());
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace nibblenet::testing
