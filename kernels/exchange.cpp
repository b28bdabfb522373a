#include "kernels/exchange.h"

#include "engine/core/error.h"
#ifdef NIBBLENET_NCCL
#include "kernels/nccl/exchange_nccl.h"
#endif

namespace nibblenet {

std::optional<std::string> nccl_problem() {
#ifdef NIBBLENET_NCCL
  try {
    nccl();
    return std::nullopt;
  } catch (const Error& error) {
    return error.what();
  }
#else
  return "this build was made without NCCL's header";
#endif
}

std::unique_ptr<Exchange> make_nccl_exchange(Backend& backend, [[maybe_unused]] Ranks& ranks) {
  if (backend.name() != "cuda")
    fail<UsageError>("NCCL moves numbers between GPUs: not with --device {}", backend.name());
  if (const auto problem = nccl_problem()) throw UsageError(*problem);
#ifdef NIBBLENET_NCCL
  return std::make_unique<NcclExchange>(static_cast<CudaBackend&>(backend), ranks);
#else
  return nullptr;
#endif
}

}  // namespace nibblenet
