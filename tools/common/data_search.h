#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/dataset.h"
#include "engine/io/json.h"

namespace nibblenet::tools {

/// Where a tool's labelled images lie: the path that the user gave, or several that were found.
class DataSource {
 public:
  /// The path that the user gave.
  DataSource(std::filesystem::path given, Unreadable unreadable)
      : candidates_{std::move(given)}, unreadable_(unreadable), asked_for_(true) {}
  /// Paths that were found, in the order to try them; `why` says how they were found.
  DataSource(std::vector<std::filesystem::path> found, std::string why, Unreadable unreadable)
      : candidates_(std::move(found)), why_(std::move(why)), unreadable_(unreadable) {}

  /// Reads a split by load_dataset() and prints which pictures are left out. The first call chooses
  /// the path and prints it: of several that were found, it passes over those that cannot be read
  /// and prints why to the standard error.
  Dataset load(Split split, int64_t limit);
  /// The chosen path; before the first load(), the one that it tries first.
  const std::filesystem::path& path() const { return candidates_.front(); }
  /// Whether the user gave the path.
  bool asked_for() const { return asked_for_; }

 private:
  std::vector<std::filesystem::path> candidates_;
  std::string why_;  ///< how the paths were found; empty once the chosen one is printed
  Unreadable unreadable_;
  bool asked_for_ = false;
};

/// Finds the images: `given` (--data) if not empty, else NIBBLENET_DATA, else data/ at the
/// project's root. When data/ has none, downloads CIFAR-10 there or, offline, draws a stand-in into
/// data/standin. Prints a path that the user gave; DataSource::load() prints one that was found.
/// Throws UsageError when `given` or NIBBLENET_DATA names nothing that exists.
DataSource find_data(const std::string& given, Unreadable unreadable);

/// Adds --skip-unreadable, as every tool that reads a data set has it.
void add_skip_option(CLI::App& app, Unreadable& unreadable);

/// Adds --split, as every tool that evaluates on a data set of choice has it.
CLI::Option* add_split_option(CLI::App& app, std::string& split);

/// Prints to the standard error how many pictures a data set leaves out, and names the first.
void print_skipped(const Dataset& data);

/// Prints the line that match_classes() returned, if it is not empty.
void print_match(const std::string& match);

/// The value of "data_set" in a tool's JSON; "skipped" counts the pictures that were left out.
nlohmann::json data_set_json(const Dataset& data, const std::string& match);

/// Prints that the result was made on the stand-in, if it was. Tools call it last.
void print_if_standin(bool standin);

/// Help text of --data.
extern const char* const data_help;

}  // namespace nibblenet::tools
