#include "tools/training/rank_group.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "engine/io/json.h"
#include "tools/common/command_line.h"
#include "tools/common/launcher.h"
#include "training/parallel/mpi_ranks.h"

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

void run_on_ranks(double silence, const std::function<void(RankGroup&)>& body) {
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
  } catch (const Stopped&) {  // which all ranks have agreed on
    mpi->finish();
    throw;
  } catch (const RankLost& lost) {
    if (lost.speaker)
      speak_up();
    else
      hold();
    throw;
  } catch (const std::exception& error) {
    if (!group.agreed()) {
      group.refuse(error.what());
      if (!group.first()) hold();
    } else if (!group.first()) {
      hold();
      speak_up();  // what all noticed, the first has said, and ended all
      throw Error(fmt::format("rank {}: {}", mpi->rank(), error.what()));
    }
    throw;
  }
}

}  // namespace nibblenet::tools
