#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "kernels/backend.h"
#include "tools/common/interrupts.h"

namespace nibblenet::tools {

/// Parses the arguments, runs the tool, and is the one place where errors are caught: prints one
/// line and returns the exit code. 0 done, 1 an error (lost output too), 2 bad arguments, 130
/// stopped by a signal.
int run_tool(CLI::App& app, int argc, char** argv, const std::function<void()>& body);

/// Thrown when work ended early on request; the message says how to go on.
class Stopped : public Error {
 public:
  using Error::Error;
};

/// --device and --threads, as every computing tool has them, and --precision for those that do not
/// train.
struct DeviceOptions {
  std::string device = "auto";
  int threads = 0;
  std::string precision = "auto";
  void add_to(CLI::App& app);
  void add_precision_to(CLI::App& app);
  std::unique_ptr<Backend> make() const;
  Precision precision_on(const Backend& backend) const;
};

/// `word` as a shell takes it for one word.
std::string shell_quoted(const std::string& word);

/// Adds --json FILE ('-' is the standard output; what is printed for people then goes to the
/// standard error), which run_tool() claims, and --force.
void add_json_option(CLI::App& app, std::string& path);
/// Writes the document when a path was given. Throws IoError.
void write_json(const std::string& path, nlohmann::json document);

/// The project's root: NIBBLENET_ROOT, which the launcher sets, else the current folder.
std::filesystem::path project_root();

}  // namespace nibblenet::tools
