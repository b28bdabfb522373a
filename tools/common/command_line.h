#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "engine/io/json.h"
#include "kernels/backend.h"
#include "layers/network/precision_choice.h"
#include "tools/common/interrupts.h"

namespace nibblenet::tools {

/// Parses the arguments, runs the tool, catches every error and prints it as one line. Returns the
/// exit code: 0 done, 1 an error (lost output included), 2 bad arguments, 130 stopped by a signal.
int run_tool(CLI::App& app, int argc, char** argv, const std::function<void()>& body);
/// run_tool() for work that asks interrupted(): signals stop it there.
int run_long_tool(CLI::App& app, int argc, char** argv, const std::function<void()>& body);

/// Adds an option with a default, which --help shows, and a check of the values given.
template <class T>
CLI::Option* add_checked(CLI::App& app, const std::string& name, T& value, const CLI::Validator& check,
                         const std::string& help) {
  return app.add_option(name, value, help)->check(check)->capture_default_str();
}

/// Thrown when work ended early on request; the message says how to go on.
class Stopped : public Error {
 public:
  using Error::Error;
};

/// --device and --threads, which every tool that computes has, and --precision of those that do not
/// train.
struct DeviceOptions {
  std::string device = "auto";
  int threads = 0;
  int gpu = 0;                 ///< as make_backend() takes it
  std::string precision;       ///< as choose_precision() takes it
  void add_to(CLI::App& app);  ///< --device, --threads
  /// Adds --precision. Left out, it is `unset`: empty for tools that measure what quantized weights
  /// cost, "auto" for those that shall be fast.
  CLI::Option* add_precision_to(CLI::App& app, const std::string& unset);
  std::unique_ptr<Backend> make() const { return make_backend(device, threads, gpu); }
  /// What --precision means for a model on a backend. Throws as choose_precision() does.
  PrecisionChoice precision_of(const Backend& backend, const StateDict& model) const {
    return choose_precision(precision, backend, model);
  }
};

/// `text` that is safe to print: names in files may hold commands to a terminal.
std::string printable(std::string text);

/// `word`, quoted where a shell would otherwise not read it as one word.
std::string shell_quoted(const std::string& word);

/// Adds --json FILE and --force. With '-' JSON goes to the standard output, and text for people to
/// the standard error. run_tool() claims FILE before the work starts.
void add_json_option(CLI::App& app, std::string& path);
/// Writes the document to `path`; does nothing when it is empty. Throws IoError.
void write_json(const std::string& path, nlohmann::json document);

/// The project's root: NIBBLENET_ROOT, which the launcher sets, else the current folder.
std::filesystem::path project_root();

}  // namespace nibblenet::tools
