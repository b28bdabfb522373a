#include "kernels/nccl/library.h"

#include "engine/core/error.h"

namespace nibblenet {

std::string Nccl::version() const {
  int number = 0;  // as NCCL_VERSION makes it from 2.9 on
  if (get_version(&number) != ncclSuccess) fail<CudaError>("NCCL does not tell its version");
  return fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
}

const Nccl& nccl() {
  static const Nccl functions{};
  return functions;
}

}  // namespace nibblenet
