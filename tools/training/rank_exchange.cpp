#include "tools/training/rank_exchange.h"

#include <map>
#include <optional>
#include <vector>

#include "engine/io/json.h"
#include "engine/ranks/mpi_ranks.h"
#include "training/parallel/host_exchange.h"

namespace nibblenet::tools {
namespace {

constexpr const char* no_gpu = "--exchange nccl moves numbers between GPUs: not with --device cpu";

/// What a rank tells the others of its GPU.
struct Place {
  std::string machine;
  std::string gpu;
  std::string problem;  ///< why it has no NCCL; empty: it has
};

std::vector<Place> places_of_all(const Backend& backend, Ranks& ranks) {
  const nlohmann::json own = {this_machine(), backend.device_id().value_or(""), nccl_problem().value_or("")};
  std::vector<Place> all;
  for (const std::string& text : ranks.gather(own.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace))) {
    const auto words = nlohmann::json::parse(text).get<std::vector<std::string>>();
    all.push_back({words.at(0), words.at(1), words.at(2)});
  }
  return all;
}

void expect_own_gpus(const std::vector<Place>& places) {
  std::map<std::pair<std::string, std::string>, size_t> owners;
  for (size_t rank = 0; rank < places.size(); ++rank) {
    const auto [owner, first] = owners.try_emplace({places[rank].machine, places[rank].gpu}, rank);
    if (!first)
      fail<UsageError>(
          "ranks {} and {} have one GPU: start as many ranks on a machine as it has GPUs, or take --exchange mpi",
          owner->second, rank);
  }
}

}  // namespace

void add_exchange_option(CLI::App& app, std::string& wanted) {
  add_checked(
      app, "--exchange", wanted, CLI::IsMember({"auto", "nccl", "mpi"}),
      "How ranks on GPUs exchange gradients and weights. nccl: from GPU to GPU, while the backward pass goes on; "
      "mpi: by way of the host, and ranks may share a GPU; auto: nccl where it is installed, else mpi. Ranks on the "
      "CPU take mpi");
}

void expect_exchange(const std::string& wanted, const DeviceOptions& device) {
  if (wanted != "nccl") return;
  if (device.device == "cpu") throw UsageError(no_gpu);
  if (const auto problem = nccl_problem()) fail<UsageError>("--exchange nccl: {}", *problem);
}

std::unique_ptr<Exchange> make_exchange(const std::string& wanted, Backend& backend, RankGroup& group) {
  Ranks& ranks = group.ranks();
  if (backend.name() == "cpu") {
    if (wanted == "nccl") throw UsageError(no_gpu);
    return nullptr;
  }
  if (ranks.size() == 1 && wanted == "auto") return nullptr;
  if (wanted == "mpi") return std::make_unique<HostExchange>(backend, ranks);
  const std::vector<Place> places = places_of_all(backend, ranks);
  expect_own_gpus(places);
  for (size_t rank = 0; rank < places.size(); ++rank) {
    if (places[rank].problem.empty()) continue;
    fmt::print("rank {}: {}: ranks take --exchange mpi\n", rank, places[rank].problem);
    return std::make_unique<HostExchange>(backend, ranks);
  }
  return make_nccl_exchange(backend, ranks);
}

}  // namespace nibblenet::tools
