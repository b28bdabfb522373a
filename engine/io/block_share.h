#pragma once

#include <algorithm>
#include <cstdint>

namespace nibblenet {

/// Indices [begin, end).
struct IndexRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

/// Part `index` of `count` consecutive parts of [0, total), as equal as they can be.
inline IndexRange part_of_range(int64_t total, int64_t index, int64_t count) {
  return {total * index / count, total * (index + 1) / count};
}

/// A process's share of every batch. A batch is cut into blocks of `block` images, the last of
/// which may be smaller, and each process takes consecutive blocks.
struct BlockShare {
  int64_t block = 0;  ///< images; 0: every process takes whole batches
  int64_t rank = 0;
  int64_t ranks = 1;

  /// Blocks of a batch, and those of them that are this process's.
  int64_t blocks_of(int64_t batch) const { return (batch + block - 1) / block; }
  IndexRange blocks(int64_t batch) const { return part_of_range(blocks_of(batch), rank, ranks); }
  /// This process's images of a batch.
  IndexRange images(int64_t batch) const {
    if (block == 0) return {0, batch};
    const IndexRange own = blocks(batch);
    return {std::min(batch, own.begin * block), std::min(batch, own.end * block)};
  }
};

}  // namespace nibblenet
