#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/dataset.h"
#include "engine/ranks/ranks.h"
#include "tools/common/command_line.h"

namespace nibblenet::tools {

/// The ranks of a tool's run, and what they have agreed on.
class RankGroup {
 public:
  /// `ranks` must outlive it.
  explicit RankGroup(Ranks& ranks) : ranks_(ranks) {}
  Ranks& ranks() { return ranks_; }
  /// Null where there is but one.
  Ranks* several() { return ranks_.size() > 1 ? &ranks_ : nullptr; }
  int size() const { return ranks_.size(); }
  /// Whether this is the rank that prints and writes.
  bool first() const { return ranks_.rank() == 0; }

  /// What all ranks must have in common: a name for people, and a value.
  using Facts = std::vector<std::pair<std::string, std::string>>;
  /// Ends the preparation of all ranks. Throws UsageError with the first rank that differs from
  /// rank 0, and in what; or with the error of a rank that could not prepare.
  void agree(const Facts& facts);
  bool agreed() const { return agreed_; }
  /// Tells the others, which call agree(), that this rank could not prepare.
  void refuse(const std::string& error);

 private:
  Ranks& ranks_;
  bool agreed_ = false;
};

/// What a request to stop does: all ranks agree on it and save something, or it ends all at once.
enum class OnStop : uint8_t { all_agree, end_all };

/// Runs `body` on the ranks that a launcher started, or on one. A rank that is silent for
/// `silence` seconds, or ends, ends all. Whoever is not first prints only where the first cannot.
void run_on_ranks(double silence, OnStop on_stop, const std::function<void(RankGroup&)>& body);

/// Adds --rank-timeout.
void add_rank_timeout(CLI::App& app, double& seconds);
/// Without --threads, ranks of a machine that may use all its cores share these. Each takes the GPU
/// of its number there.
void share_machine(DeviceOptions& device);
/// The words of a command, by which ranks tell whether all got the same.
std::string words_of(int argc, char** argv);
/// Identifies images.
std::string fingerprint_of_images(const Dataset& dataset);
/// Identifies a file's contents. Throws IoError.
std::string fingerprint_of_file(const std::filesystem::path& path);

}  // namespace nibblenet::tools
