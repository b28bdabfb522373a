#pragma once

#include <string>

namespace nibblenet {

/// What the bits of a block depend on beside its images: oneDNN's version, the instructions that it
/// may use, and the sizes of the caches, by which it cuts its loops.
std::string processor_of_blocks();

}  // namespace nibblenet
