#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/core/error.h"
#include "engine/ranks/last_words.h"
#include "engine/ranks/mpi_module.h"
#include "engine/ranks/ranks.h"

namespace nibblenet {

/// What tells this machine from others: its name and its last start.
std::string this_machine();

/// A rank that ended while others needed it. The message names it.
class RankLost : public Error {
 public:
  RankLost(const std::string& message, bool tells, bool tells_late = false)
      : Error(message), speaker(tells), late_speaker(tells_late) {}
  bool speaker;       ///< this process has the lowest rank of those that go on, and the lost one did not
                      ///< say why it ended: this one shall tell of it
  bool late_speaker;  ///< or may have, where nothing else ends it for a while
};

/// The processes that a launcher of MPI (mpirun, srun) started. Notices ranks on this machine that
/// end, and any rank that is silent for too long.
class MpiRanks final : public Ranks {
 public:
  /// Loads the module that links MPI (libnibblenet_mpi.so: the file that NIBBLENET_MPI_MODULE
  /// names, else beside the program or in ../libexec/nibblenet), and starts MPI. Throws UsageError
  /// where this build has no such module. `silence` seconds count as the end of a rank.
  explicit MpiRanks(double silence);
  /// Ends all ranks' processes unless finish() was called.
  ~MpiRanks() override;
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void exchange(std::span<const Sent> sent, std::span<const Received> received) override;
  void add_up(std::span<float> values) override;
  void expect_present(double seconds) override;
  /// Ends MPI, once all ranks do so.
  void finish();
  /// Tells the ranks of this machine that this one says why it ends, so that they need not.
  void announce_end() const;

 private:
  void meet();
  void expect_living();
  void wait();
  [[noreturn]] void silent(int peer);

  const NibblenetMpi* mpi_ = nullptr;
  int rank_ = 0;
  int size_ = 1;
  double silence_;
  bool finished_ = false;
  LastWords last_words_;
  std::vector<int64_t> neighbours_;  ///< process ids by rank; 0: not of this machine
};

}  // namespace nibblenet
