#pragma once

#include <memory>
#include <string>

#include "kernels/exchange.h"
#include "tools/common/rank_group.h"

namespace nibblenet::tools {

/// Adds --exchange.
void add_exchange_option(CLI::App& app, std::string& wanted);
/// Throws UsageError, before any work, for an exchange that this build, machine or device has not.
void expect_exchange(const std::string& wanted, const DeviceOptions& device);
/// What moves gradients between the devices of a group's ranks, by --exchange; null where they need
/// nothing: there is one, or they are CPUs. Collective, after RankGroup::agree(). Throws UsageError
/// where ranks share a GPU without --exchange mpi, and for NCCL between CPUs.
std::unique_ptr<Exchange> make_exchange(const std::string& wanted, Backend& backend, RankGroup& group);

}  // namespace nibblenet::tools
