#pragma once

#include <deque>
#include <string>
#include <vector>

#include "kernels/activations.h"
#include "kernels/cudnn/graph_descriptor.h"
#include "kernels/shapes.h"

namespace nibblenet {

/// y = epilogue(conv(x, filters) + bias) as one graph of cuDNN's operations, and the plans by which cuDNN would run it:
/// more of them than its older interface has algorithms, all with bias and activation in the same kernel. Float16 with
/// float32 sums; images [N, H, W, C], filters [K, R, S, C].
class ConvolutionGraph {
 public:
  /// Asks for the plans for the current GPU or, without any GPU, for the one that `properties` describes as cuDNN does,
  /// in JSON. Throws CudaError where this cuDNN has no such interface or no such convolution.
  ConvolutionGraph(const Shape& x, const Shape& y, Window window, Epilogue epilogue,
                   const std::string& properties = {});

  size_t plans() const { return plans_.size(); }
  size_t workspace(size_t plan) const { return plans_[plan].workspace; }
  /// All operands lie on 16 bytes, `workspace` has as many as its plan wants.
  cudnnStatus_t run(size_t plan, cudnnHandle_t handle, void* y, const void* x, const void* filters, const void* bias,
                    void* workspace) const;

 private:
  struct Plan {
    GraphDescriptor plan;
    size_t workspace;
  };
  void find_plans(const GraphDescriptor* graph, const GraphDescriptor* device, cudnnBackendHeurMode_t mode);

  std::deque<GraphDescriptor> parts_;  ///< what plans refer to, and each other
  std::vector<Plan> plans_;            ///< those that cuDNN expects to be fast first
};

}  // namespace nibblenet
