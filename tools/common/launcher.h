#pragma once

#include <optional>

namespace nibblenet::tools {

/// What mpirun (Open MPI, MPICH) or srun say of this process in its environment.
struct Launched {
  int rank = 0;
  int ranks = 1;
  int ranks_here = 1;  ///< on this machine
  int rank_here = 0;   ///< among those
};
/// Nothing where no launcher started this process.
std::optional<Launched> launched();

/// Makes all ranks but the first silent, and lets them write no files of options: run_tool() then
/// claims none. Call it first in main(). Does nothing without a launcher.
void let_first_rank_speak();
/// Whether this process prints and writes: it is the only one, or the first, or no other has asked.
bool speaks();
/// Lets a silent rank speak on the standard error.
void speak_up();
/// speak_up() after a while in which the first rank, where it has the same to say, ends all.
void speak_late();

}  // namespace nibblenet::tools
