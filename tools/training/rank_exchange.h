#pragma once

#include <memory>
#include <string>

#include "kernels/exchange.h"
#include "tools/common/rank_group.h"

namespace nibblenet::tools {

/// Adds --exchange.
void add_exchange_option(CLI::App& app, std::string& wanted);
/// What moves gradients between the devices of a group's ranks, by --exchange; null where they need
/// nothing: there is one, or they are CPUs. Collective, after RankGroup::agree(). Throws UsageError
/// where NCCL was asked for and is not there, and where ranks share a GPU without --exchange mpi.
std::unique_ptr<Exchange> make_exchange(const std::string& wanted, Backend& backend, RankGroup& group);

}  // namespace nibblenet::tools
