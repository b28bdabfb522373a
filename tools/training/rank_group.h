#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "training/parallel/ranks.h"

namespace nibblenet::tools {

/// The ranks of a tool's run, and what they have agreed on.
class RankGroup {
 public:
  /// `ranks` must outlive it.
  explicit RankGroup(Ranks& ranks) : ranks_(ranks) {}
  Ranks& ranks() { return ranks_; }
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

/// Runs `body` on the ranks that a launcher started, or on one. A rank that is silent for
/// `silence` seconds, or ends, ends all. Whoever is not first prints only where the first cannot.
void run_on_ranks(double silence, const std::function<void(RankGroup&)>& body);

}  // namespace nibblenet::tools
