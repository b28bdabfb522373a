#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/dataset.h"

namespace nibblenet::tools {

/// Labelled images that a tool was given or found: a path, or several to try in turn.
class DataSource {
 public:
  /// A path that somebody named: there is no other to try.
  explicit DataSource(std::filesystem::path given) : candidates_{std::move(given)}, asked_for_(true) {}
  /// Paths that were found, in the order to try them; `why` says how.
  DataSource(std::vector<std::filesystem::path> found, std::string why)
      : candidates_(std::move(found)), why_(std::move(why)) {}

  /// Reads a split, as load_dataset does. The first call settles which path it is: where several
  /// were found, one that cannot be read is passed over, with the reason on the standard error.
  Dataset load(Split split, int64_t limit);
  /// The path; before the first load(), the one to be tried first.
  const std::filesystem::path& path() const { return candidates_.front(); }
  bool asked_for() const { return asked_for_; }

 private:
  std::vector<std::filesystem::path> candidates_;
  std::string why_;  ///< printed once the path is settled; empty when it is
  bool asked_for_ = false;
};

/// Where the images come from: `given` (--data) if not empty, else NIBBLENET_DATA, else data/ at
/// the project's root; else CIFAR-10 is downloaded there; offline, a stand-in is drawn into
/// data/standin. Prints which it was. Throws when `given` or NIBBLENET_DATA name nothing that
/// exists.
DataSource find_data(const std::string& given);

/// Says, as the last line of a result, that it was made on the stand-in, if it was.
void print_if_standin(bool standin);

/// Help text of --data.
extern const char* const data_help;

}  // namespace nibblenet::tools
