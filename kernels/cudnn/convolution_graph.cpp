#include "kernels/cudnn/convolution_graph.h"

#include <array>

namespace nibblenet {
namespace {

// cuDNN may compile a plan's kernel for a second or more, and offers dozens.
constexpr size_t most_plans = 8;
constexpr double most_seconds = 20;  ///< for all plans of a convolution; a plan that was begun is finished

/// Names of the graph's tensors.
enum Tensor : int64_t { x_of = 1, filters_of, bias_of, y_of, convolved_of, biased_of };

/// A tensor [N, C, H, W] with channels innermost. `type` is float32 for tensors inside the kernel.
GraphDescriptor describe(Tensor name, const std::array<int64_t, 4>& sizes, cudnnDataType_t type) {
  const auto [n, c, h, w] = sizes;
  const bool inside = type == CUDNN_DATA_FLOAT;
  return GraphDescriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR)
      .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, {static_cast<int64_t>(name)})
      .set(CUDNN_ATTR_TENSOR_DATA_TYPE, {type})
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, {n, c, h, w})
      .set(CUDNN_ATTR_TENSOR_STRIDES, {c * h * w, int64_t{1}, c * w, c})
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, {int64_t{16}})
      .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, {inside});
}

GraphDescriptor describe_sliding(Window window) {
  return GraphDescriptor(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)
      .set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, {CUDNN_DATA_FLOAT})
      .set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, {CUDNN_CROSS_CORRELATION})
      .set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, {int64_t{2}})
      .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, {window.padding, window.padding})
      .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, {window.padding, window.padding})
      .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, {window.stride, window.stride})
      .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, {int64_t{1}, int64_t{1}});
}

GraphDescriptor describe_pointwise(cudnnPointwiseMode_t mode) {
  return GraphDescriptor(CUDNN_BACKEND_POINTWISE_DESCRIPTOR)
      .set(CUDNN_ATTR_POINTWISE_MODE, {mode})
      .set(CUDNN_ATTR_POINTWISE_MATH_PREC, {CUDNN_DATA_FLOAT});
}

GraphDescriptor describe_device(const std::string& properties) {
  GraphDescriptor device(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  if (properties.empty()) return std::move(device).set(CUDNN_ATTR_DEVICEPROP_DEVICE_ID, {int32_t{0}});
  return std::move(device).set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, std::span<const char>(properties));
}

}  // namespace

ConvolutionGraph::ConvolutionGraph(const Shape& x, const Shape& y, Window window, Epilogue epilogue,
                                   const std::string& properties) {
  const auto keep = [&](GraphDescriptor descriptor) { return &parts_.emplace_back(std::move(descriptor).finalize()); };
  const std::array<int64_t, 4> outputs = {y[0], y[3], y[1], y[2]};
  const auto* x_tensor = keep(describe(x_of, {x[0], x[3], x[1], x[2]}, CUDNN_DATA_HALF));
  const auto* filters = keep(describe(filters_of, {y[3], x[3], window.size, window.size}, CUDNN_DATA_HALF));
  const auto* bias = keep(describe(bias_of, {1, y[3], 1, 1}, CUDNN_DATA_HALF));
  const auto* y_tensor = keep(describe(y_of, outputs, CUDNN_DATA_HALF));
  const auto* convolved = keep(describe(convolved_of, outputs, CUDNN_DATA_FLOAT));
  const bool with_relu = epilogue == Epilogue::relu;
  const auto* biased = with_relu ? keep(describe(biased_of, outputs, CUDNN_DATA_FLOAT)) : y_tensor;

  const auto* sliding = keep(describe_sliding(window));
  const auto* convolution = keep(GraphDescriptor(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
                                     .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, {sliding})
                                     .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, {x_tensor})
                                     .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, {filters})
                                     .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, {convolved})
                                     .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, {1.0F})
                                     .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, {0.0F}));
  const auto* addition =
      keep(GraphDescriptor(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
               .set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, {keep(describe_pointwise(CUDNN_POINTWISE_ADD))})
               .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, {convolved})
               .set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, {bias})
               .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, {biased}));
  const GraphDescriptor* relu = nullptr;
  if (with_relu)
    relu = keep(
        GraphDescriptor(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
            .set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, {keep(describe_pointwise(CUDNN_POINTWISE_RELU_FWD))})
            .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, {biased})
            .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, {y_tensor}));
  const auto* graph = keep(GraphDescriptor(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)
                               .set(CUDNN_ATTR_OPERATIONGRAPH_OPS, {convolution, addition, relu}));

  const auto* device = keep(describe_device(properties));
  const Stopwatch watch;
  find_plans(graph, device, CUDNN_HEUR_MODE_A, watch);
  find_plans(graph, device, CUDNN_HEUR_MODE_FALLBACK, watch);
}

void ConvolutionGraph::find_plans(const GraphDescriptor* graph, const GraphDescriptor* device,
                                  cudnnBackendHeurMode_t mode, const Stopwatch& watch) {
  GraphDescriptor heuristic = GraphDescriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)
                                  .set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, {graph})
                                  .set(CUDNN_ATTR_ENGINEHEUR_MODE, {mode})
                                  .set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, {device});
  if (heuristic.try_finalize() != CUDNN_STATUS_SUCCESS) return;  // no plans
  const auto ask = [&](int64_t wanted, cudnnBackendDescriptor_t* results) {
    int64_t count = 0;
    check(cudnn().get_attribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, wanted,
                                &count, results),
          "asking for plans");
    return count;
  };
  std::vector<GraphDescriptor> configurations;
  std::vector<cudnnBackendDescriptor_t> results;
  for (int64_t count = ask(0, nullptr); count > 0; --count)
    results.push_back(configurations.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
  const int64_t count = ask(static_cast<int64_t>(results.size()), results.data());
  for (int64_t i = 0; i < count && plans_.size() < most_plans && watch.seconds() < most_seconds; ++i) {
    GraphDescriptor& configuration = configurations[static_cast<size_t>(i)];
    GraphDescriptor plan = GraphDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)
                               .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, {&configuration})
                               .set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, {device});
    if (plan.try_finalize() != CUDNN_STATUS_SUCCESS) continue;  // not for these shapes
    const int64_t bytes = plan.integer(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
    plans_.push_back({std::move(plan), static_cast<size_t>(bytes)});
    parts_.push_back(std::move(configuration));
  }
}

cudnnStatus_t ConvolutionGraph::run(size_t plan, cudnnHandle_t handle, void* y, const void* x, const void* filters,
                                    const void* bias, void* workspace) const {
  const auto operands = GraphDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)
                            .set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS,
                                 {int64_t{x_of}, int64_t{filters_of}, int64_t{bias_of}, int64_t{y_of}})
                            .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                 {const_cast<void*>(x), const_cast<void*>(filters), const_cast<void*>(bias), y})
                            .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, {workspace})
                            .finalize();
  return cudnn().execute(handle, plans_[plan].plan.get(), operands.get());
}

}  // namespace nibblenet
