#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibblenet {

/// Sorts finite weights by magnitude, equal ones by index, cuts the sequence into runs of `block`,
/// and returns for each weight, by index, the number of its run. Takes 12 bytes a weight while it
/// works, 4 of them returned. Throws ShapeError for 2^32 weights or more.
std::vector<uint32_t> magnitude_blocks(std::span<const float> weights, int64_t block);

}  // namespace nibblenet
