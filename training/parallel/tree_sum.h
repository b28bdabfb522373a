#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "engine/core/memory.h"
#include "engine/io/block_share.h"

namespace nibblenet {

/// A node of the binary tree over the blocks of a batch: the sum of leaves [index 2^level,
/// (index + 1) 2^level).
struct TreeNode {
  int level = 0;
  int64_t index = 0;
  friend auto operator<=>(const TreeNode&, const TreeNode&) = default;
};

/// The fewest nodes of the tree over `leaves` blocks whose leaves are those of `own`, in order.
std::vector<TreeNode> nodes_of(int64_t leaves, IndexRange own);

/// Sums vectors of one length in a binary tree whose form depends on the number of leaves alone:
/// node = left + right, so the bits depend neither on who adds nor on what is added first.
/// Functions may be called by several threads at once.
class TreeSum {
 public:
  using Values = Buffer<float>;  ///< of a node
  /// to[i] += from[i], for `count` numbers in the sums' memory.
  using Add = std::function<void(float* to, const float* from, size_t count)>;
  /// The sums lie in `memory`, and `add` adds there; without it the calling thread does, on the
  /// host. Requires: the given nodes' leaves are those of `own`.
  TreeSum(int64_t leaves, IndexRange own, size_t length, MemoryResource& memory = host_memory(), Add add = {});

  /// Room for the values of a node; the contents are not initialised.
  Values room();
  /// Takes the values of a node, and adds up all sums that they complete.
  void add(TreeNode node, Values values);
  /// The sums of nodes_of(leaves, own), in order. Requires: all of these leaves were added.
  std::vector<Values> take();
  /// Takes back room that was given out, for the next sum.
  void recycle(Values values);
  /// The most bytes that were given out at once.
  size_t peak_bytes() const { return rooms_ * length_ * sizeof(float); }
  /// Begins another sum, over other leaves.
  void begin(int64_t leaves, IndexRange own);

 private:
  int64_t leaves_ = 0;
  size_t length_;
  MemoryResource& memory_;
  Add add_;
  std::vector<TreeNode> wanted_;
  std::mutex mutex_;  ///< guards what follows
  std::map<TreeNode, Values> waiting_;
  std::vector<Values> free_;
  size_t rooms_ = 0;  ///< that were ever made; they come back
};

}  // namespace nibblenet
