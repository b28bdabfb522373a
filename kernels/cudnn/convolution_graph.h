#pragma once

#include <deque>
#include <string>
#include <vector>

#include "engine/core/stopwatch.h"
#include "kernels/activations.h"
#include "kernels/cudnn/graph_descriptor.h"
#include "kernels/shapes.h"

namespace nibblenet {

/// y = epilogue(conv(x, filters) + bias) as one graph of cuDNN's operations, with cuDNN's plans for
/// it. There are more plans than the older interface has algorithms, and each has bias and
/// activation in the same kernel. Float16 with float32 sums; images [N, H, W, C], filters [K, R, S,
/// C].
class ConvolutionGraph {
 public:
  /// Gets the most promising plans, at most eight, for the current GPU, or for the GPU that
  /// `properties` describes in cuDNN's JSON. Throws CudaError if this cuDNN has no such interface
  /// or no such convolution.
  ConvolutionGraph(const Shape& x, const Shape& y, Window window, Epilogue epilogue,
                   const std::string& properties = {});

  size_t plans() const { return plans_.size(); }
  size_t workspace(size_t plan) const { return plans_[plan].workspace; }
  /// Requires: 16-byte aligned operands, and a `workspace` of the size that the plan needs.
  cudnnStatus_t run(size_t plan, cudnnHandle_t handle, void* y, const void* x, const void* filters, const void* bias,
                    void* workspace) const;

 private:
  struct Plan {
    GraphDescriptor plan;
    size_t workspace;
  };
  void find_plans(const GraphDescriptor* graph, const GraphDescriptor* device, cudnnBackendHeurMode_t mode,
                  const Stopwatch& watch);

  std::deque<GraphDescriptor> parts_;  ///< parts of the graph, which refer to each other
  std::vector<Plan> plans_;            ///< in cuDNN's expected order of speed
};

}  // namespace nibblenet
