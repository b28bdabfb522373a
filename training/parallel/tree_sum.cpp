#include "training/parallel/tree_sum.h"

#include <algorithm>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

IndexRange leaves_below(TreeNode node, int64_t leaves) {
  return {std::min(leaves, node.index << node.level), std::min(leaves, (node.index + 1) << node.level)};
}

void collect(TreeNode node, int64_t leaves, IndexRange own, std::vector<TreeNode>& nodes) {
  const IndexRange below = leaves_below(node, leaves);
  if (below.size() == 0 || below.end <= own.begin || below.begin >= own.end) return;
  if (below.begin >= own.begin && below.end <= own.end) {
    nodes.push_back(node);
    return;
  }
  collect({node.level - 1, 2 * node.index}, leaves, own, nodes);
  collect({node.level - 1, 2 * node.index + 1}, leaves, own, nodes);
}

}  // namespace

std::vector<TreeNode> nodes_of(int64_t leaves, IndexRange own) {
  int height = 0;
  while ((int64_t{1} << height) < leaves) ++height;
  std::vector<TreeNode> nodes;
  collect({height, 0}, leaves, own, nodes);
  return nodes;
}

TreeSum::TreeSum(int64_t leaves, IndexRange own, size_t length, MemoryResource& memory, Add add)
    : length_(length), memory_(memory), add_(std::move(add)) {
  if (!add_)
    add_ = [](float* to, const float* from, size_t count) {
      for (size_t i = 0; i < count; ++i) to[i] += from[i];
    };
  begin(leaves, own);
}

void TreeSum::begin(int64_t leaves, IndexRange own) {
  leaves_ = leaves;
  wanted_ = nodes_of(leaves, own);
  const std::lock_guard lock(mutex_);
  for (auto& [node, values] : waiting_) free_.push_back(std::move(values));  // of a sum that an error ended
  waiting_.clear();
}

TreeSum::Values TreeSum::room() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      Values values = std::move(free_.back());
      free_.pop_back();
      return values;
    }
    ++rooms_;
  }
  return {memory_, length_, MemoryCategory::gradients};
}

void TreeSum::recycle(Values values) {
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(values));
}

void TreeSum::add(TreeNode node, Values values) {
  for (;; node = {node.level + 1, node.index / 2}) {
    const TreeNode sibling{node.level, node.index ^ 1};
    const bool wanted = std::ranges::find(wanted_, node) != wanted_.end();
    if (!wanted && leaves_below(sibling, leaves_).size() == 0) continue;  // its parent is the same sum
    Values other;
    {
      const std::lock_guard lock(mutex_);
      const auto found = wanted ? waiting_.end() : waiting_.find(sibling);
      if (found == waiting_.end()) {
        waiting_.emplace(node, std::move(values));
        return;
      }
      other = std::move(found->second);
      waiting_.erase(found);
    }
    add_(values.data(), other.data(), length_);  // a + b = b + a to the bit
    recycle(std::move(other));
  }
}

std::vector<TreeSum::Values> TreeSum::take() {
  std::vector<Values> sums;
  const std::lock_guard lock(mutex_);
  for (const TreeNode& node : wanted_) {
    const auto found = waiting_.find(node);
    if (found == waiting_.end()) fail<Error>("a sum over {} blocks lacks some", leaves_);
    sums.push_back(std::move(found->second));
    waiting_.erase(found);
  }
  return sums;
}

}  // namespace nibblenet
