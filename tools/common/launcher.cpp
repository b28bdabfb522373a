#include "tools/common/launcher.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>

namespace nibblenet::tools {
namespace {

bool silent = false;
int standard_error = STDERR_FILENO;

std::optional<int> number_in(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return std::nullopt;
  return std::atoi(text);
}

}  // namespace

std::optional<Launched> launched() {
  constexpr const char* launchers[][3] = {
      {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
      {"PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"},
      {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"},
  };
  for (const auto& [size, rank, here] : launchers) {
    const std::optional<int> ranks = number_in(size), own = number_in(rank);
    const bool steps_of_one = size == launchers[2][0] && ranks == 1;  // srun starts programs without MPI, too
    if (!ranks || !own || steps_of_one) continue;
    Launched result{*own, *ranks, number_in(here).value_or(1), *own};  // on one machine, ranks are counted as here
    for (const char* rank_here : {"SLURM_LOCALID", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"})
      result.rank_here = number_in(rank_here).value_or(result.rank_here);
    return result;
  }
  return std::nullopt;
}

void let_first_rank_speak() {
  const std::optional<Launched> own = launched();
  if (!own || own->rank == 0) return;
  silent = true;
  standard_error = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
  const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (nowhere < 0) return;
  dup2(nowhere, STDOUT_FILENO);
  dup2(nowhere, STDERR_FILENO);
  close(nowhere);
}

bool speaks() { return !silent; }

void speak_late() {
  std::this_thread::sleep_for(std::chrono::seconds(3));
  speak_up();
}

void speak_up() {
  if (silent && standard_error > STDERR_FILENO) dup2(standard_error, STDERR_FILENO);
}

}  // namespace nibblenet::tools
