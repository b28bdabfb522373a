#pragma once

#include <string>

#include "kernels/backend.h"

namespace nibblenet {

/// What the bits of a block depend on beside its images: oneDNN's version, the instructions that it
/// may use, and the sizes of the caches, by which it cuts its loops.
std::string processor_of_blocks();
/// Likewise on a GPU: which one, the versions of CUDA and of the driver, and NIBBLENET_KERNELS.
std::string processor_of_blocks(const Backend& gpu);

}  // namespace nibblenet
