#include "tools/common/rank_group.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include "engine/core/threads.h"
#include "engine/io/json.h"
#include "engine/io/safetensors_header.h"
#include "engine/ranks/mpi_ranks.h"
#include "tools/common/command_line.h"
#include "tools/common/launcher.h"

namespace nibblenet::tools {
namespace {

/// Lets the first rank say what happened, and end all.
void hold() { std::this_thread::sleep_for(std::chrono::seconds(3)); }

}  // namespace

void RankGroup::refuse(const std::string& error) {
  agreed_ = true;
  ranks_.gather(nlohmann::json{{"error", error}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void RankGroup::agree(const Facts& facts) {
  if (ranks_.size() == 1) return;
  agreed_ = true;
  const nlohmann::json mine = {{"facts", facts}};
  std::vector<nlohmann::json> all;
  for (const std::string& text : ranks_.gather(mine.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)))
    all.push_back(nlohmann::json::parse(text));
  for (size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].contains("error")) fail<UsageError>("rank {}: {}", rank, all[rank].at("error").get<std::string>());
  const auto first = all[0].at("facts").get<Facts>();
  for (size_t rank = 1; rank < all.size(); ++rank) {
    const auto other = all[rank].at("facts").get<Facts>();
    for (size_t i = 0; i < std::min(first.size(), other.size()); ++i)
      if (other[i] != first[i])
        fail<UsageError>("rank {} has another {} than rank 0 ({} in place of {}): start all with the same", rank,
                         other[i].first, other[i].second, first[i].second);
    if (other.size() != first.size()) fail<UsageError>("rank {} is of another build than rank 0", rank);
  }
}

void run_on_ranks(double silence, OnStop on_stop, const std::function<void(RankGroup&)>& body) {
  const std::optional<Launched> own = launched();
  if (!own || own->ranks == 1) {
    OneRank one;
    RankGroup group(one);
    body(group);
    return;
  }
  // Ends the other ranks where this one returns early; after run_tool() has printed why.
  static std::unique_ptr<MpiRanks> mpi;
  mpi = std::make_unique<MpiRanks>(silence);
  RankGroup group(*mpi);
  try {
    body(group);
    mpi->finish();
  } catch (const RankLost& lost) {
    if (lost.speaker) {
      mpi->announce_end();
      speak_up();
    } else {
      hold();
      if (lost.late_speaker) {
        std::this_thread::sleep_for(std::chrono::milliseconds(500) * mpi->rank());
        mpi->announce_end();
        speak_up();
      }
    }
    throw;
  } catch (const std::exception& error) {
    if (on_stop == OnStop::all_agree && dynamic_cast<const Stopped*>(&error) != nullptr) {
      mpi->finish();
      throw;
    }
    if (!group.agreed()) {
      group.refuse(error.what());
      if (!group.first()) hold();
    } else if (group.first()) {
      mpi->announce_end();
    } else {
      hold();
      speak_up();  // what all noticed, the first has said, and ended all
      throw Error(fmt::format("rank {}: {}", mpi->rank(), error.what()));
    }
    throw;
  }
}

void add_rank_timeout(CLI::App& app, double& seconds) {
  add_checked(app, "--rank-timeout", seconds, CLI::Range(1.0, 1e9),
              "Under mpirun or srun: end all ranks when one is silent for SECONDS")
      ->type_name("SECONDS");
}

void share_machine(DeviceOptions& device) {
  const std::optional<Launched> own = launched();
  if (own) device.gpu = own->rank_here;
  const unsigned cores = default_threads();
  if (own && device.threads == 0 && std::getenv("OMP_NUM_THREADS") == nullptr &&
      cores == std::thread::hardware_concurrency())
    device.threads = std::max(1, static_cast<int>(cores) / own->ranks_here);
}

std::string words_of(int argc, char** argv) {
  std::string words;
  for (int i = 1; i < argc; ++i) words += (i > 1 ? " " : "") + shell_quoted(argv[i]);
  return words;
}

std::string fingerprint_of_images(const Dataset& dataset) {
  return checksum_of(dataset.pixels) + checksum_of(dataset.labels);
}

std::string fingerprint_of_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<uint8_t> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file && !file.eof()) fail<IoError>("cannot read {}", path.string());
  return checksum_of(bytes);
}

}  // namespace nibblenet::tools
