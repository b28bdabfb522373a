#include "tools/common/command_line.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sstream>
#include <system_error>

#include "engine/core/progress.h"
#include "engine/io/safetensors.h"
#include "tools/common/aliases.h"
#include "tools/common/completion.h"
#include "tools/common/launcher.h"
#include "tools/common/numbers.h"
#include "tools/common/outputs.h"
#include "tools/common/standard_streams.h"
#include "tools/common/version.h"

namespace nibblenet::tools {
namespace {

/// Where --json - writes: a copy of the original standard output. Text for people moves to the
/// standard error.
FILE* json_output = stdout;

void keep_standard_output_for_json() {
  std::fflush(stdout);
  const int original = dup(STDOUT_FILENO);
  json_output = original < 0 ? nullptr : fdopen(original, "w");
  if (json_output == nullptr || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
    throw IoError("--json -: cannot write to the standard output");
}

constexpr int exit_error = 1;
constexpr int exit_usage = 2;
constexpr int exit_interrupted = 130;

/// Messages of libraries may hold several lines; a tool prints one.
std::string one_line(std::string text) {
  for (char& c : text)
    if (c == '\n' || c == '\r') c = ' ';
  return printable(std::move(text));
}

/// An empty value is most often a shell variable that is not set. CLI11 would take it for none, and
/// the word behind "--name=" for its value.
void refuse_empty_words(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (word.empty())
      fail<UsageError>("argument {}{} is empty: give a value, or leave it out", i + 1,
                       i > 0 ? fmt::format(", behind {},", arguments[i - 1]) : "");
    if (word.starts_with("--") && word.size() > 3 && word.find('=') == word.size() - 1)
      fail<UsageError>("{} has an empty value: give one, or leave it out", word);
  }
}

/// Only --json takes '-'; elsewhere it would be a file of that name.
void refuse_dash(const CLI::App& app) {
  for (const char* name : {"--output", "--out", "--logits", "--save-calibration", "--card"})
    if (const CLI::Option* option = app.get_option_no_throw(name); option != nullptr && option->count() > 0)
      if (option->as<std::string>() == "-")
        fail<UsageError>("{} -: only --json writes to the standard output; name a file", name);
}

/// Thrown by options that are answered by a text, in place of the tool's work.
struct Answer {
  std::string text;
};

void add_answers(CLI::App& app) {
  app.add_flag_callback(
      "--version", [&app] { throw Answer{version_text(app.get_name())}; }, "Print version, commit, build and devices");
  app.add_option_function<std::string>(
         "--completion", [&app](const std::string& shell) { throw Answer{completion_script(app, shell)}; },
         "Print a script by which a shell completes this tool's options; tools/dev completion prints that of all")
      ->type_name("bash|zsh");
}

}  // namespace

int run_tool(CLI::App& app, int argc, char** argv, const std::function<void()>& body) {
  const auto report = [&](const std::exception& error, int code) {
    fmt::print(stderr, "{}: error: {}\n", app.get_name(), one_line(error.what()));
    return code;
  };
  const auto finish = [&] {
    std::fflush(stdout);
    if (const int error = standard_output_error(); error != 0)
      return report(IoError(fmt::format("cannot write to the standard output: {}", std::strerror(error))), exit_error);
    return standard_error_error() == 0 ? 0 : exit_error;
  };
  guard_standard_streams();
  try {
    std::vector<std::string> arguments(argv + 1, argv + argc);
    refuse_empty_words(arguments);
    take_old_names(app, arguments);
    std::ranges::reverse(arguments);  // as CLI11 takes them
    add_answers(app);
    check_numbers(app);
    app.parse(std::move(arguments));
    refuse_dash(app);
    const CLI::Option* json = app.get_option_no_throw("--json");
    const std::string json_path = json != nullptr && json->count() > 0 && speaks() ? json->as<std::string>() : "";
    if (json_path == "-") keep_standard_output_for_json();
    const std::optional<FileClaim> claim = claim_output("--json", json_path == "-" ? "" : json_path, OutputKind::json);
    body();
    return finish();
  } catch (const Answer& answer) {
    fmt::print("{}", answer.text);
    return finish();
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help
      std::ostringstream text;
      app.exit(error, text, text);
      fmt::print("{}", text.str());
      return finish();
    }
    if (!speaks()) speak_late();
    fmt::print(stderr, "{}: error: {} (see {} --help)\n", app.get_name(), one_line(error.what()), app.get_name());
    return exit_usage;
  } catch (const UsageError& error) {
    return report(error, exit_usage);
  } catch (const Interrupted& error) {
    return report(error, exit_interrupted);
  } catch (const Stopped& error) {
    fmt::print(stderr, "{}: {}\n", app.get_name(), error.what());
    return standard_output_error() == EPIPE ? exit_error : exit_interrupted;
  } catch (const std::bad_alloc&) {
    return report(Error("out of memory"), exit_error);
  } catch (const std::system_error& error) {
    const bool thread = error.code() == std::errc::resource_unavailable_try_again;
    return report(Error(thread ? "cannot start a thread: too little memory, or too many processes (see ulimit -a)"
                               : error.what()),
                  exit_error);
  } catch (const std::exception& error) {
    return report(error, exit_error);
  }
}

int run_long_tool(CLI::App& app, int argc, char** argv, const std::function<void()>& body) {
  return run_tool(app, argc, argv, [&] {
    catch_interrupts();
    body();
  });
}

void DeviceOptions::add_to(CLI::App& app) {
  add_checked(
      app, "--device", device, CLI::IsMember({"auto", "cpu", "cuda", "cudnn"}),
      "Where to compute: cpu, cuda, auto (cuda where there is a GPU), or cudnn (NVIDIA's libraries on dequantized "
      "weights, to compare with)");
  add_checked(app, "--threads", threads, CLI::Range(0, 1024),
              "CPU threads; 0: OMP_NUM_THREADS, else the cores that the process may use");
}

CLI::Option* DeviceOptions::add_precision_to(CLI::App& app, const std::string& unset) {
  precision = unset;
  std::vector<std::string> names = {"auto"};
  for (const auto& [name, value] : precisions) names.emplace_back(name);
  std::string help =
      "Type of the factors of products: float32; float16, on a GPU; bfloat16 or int8, on the CPU; or auto: float16 on "
      "a "
      "GPU, and on the CPU the fastest whose divergence from float32, which pack measured, is at most " +
      fmt::format("{}", most_divergence) +
      ". int8 needs packed weights of one scale a channel; auto computes other "
      "layers in another type";
  if (unset.empty()) help += ". Default: float16 on a GPU, float32 on the CPU";
  return add_checked(app, "--precision", precision, CLI::IsMember(names), help)->type_name("TYPE");
}

std::string printable(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return text;
}

std::string shell_quoted(const std::string& word) {
  constexpr std::string_view plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,+@%";
  if (!word.empty() && word.find_first_not_of(plain) == word.npos) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

void add_json_option(CLI::App& app, std::string& path) {
  app.add_option("--json", path, "Write the results as JSON to FILE ('-': standard output)")->type_name("FILE");
  add_force_option(app);
}

void write_json(const std::string& path, nlohmann::json document) {
  if (path.empty()) return;
  add_both_names(document);
  document["nibblenet"] = version_json();
  // Names of files may be any bytes; JSON is UTF-8.
  const std::string text = document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  if (path == "-") {
    if (std::fputs(text.c_str(), json_output) < 0 || std::fputc('\n', json_output) < 0 || std::fflush(json_output) != 0)
      throw IoError("cannot write to the standard output");
    return;
  }
  AtomicFile file(path);
  file.write(bytes_of(std::span<const char>(text + '\n')));
  file.commit();
}

std::filesystem::path project_root() {
  const char* root = std::getenv("NIBBLENET_ROOT");
  return root != nullptr && *root != '\0' ? std::filesystem::path(root) : std::filesystem::current_path();
}

}  // namespace nibblenet::tools
