// The graph interface of the stand-in for cuDNN: convolutions with a bias and perhaps a ReLU. It
// checks that our descriptors are complete and refer to each other correctly, and that a plan which
// cannot run gives way to another.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <map>
#include <vector>

#include "tests/hostexec/fake_cudnn.h"

using namespace fake_cudnn;

namespace {

struct Attribute {
  cudnnBackendAttributeType_t type;
  int64_t count;
  std::vector<std::byte> bytes;
};

struct GraphPart {
  cudnnBackendDescriptorType_t type;
  std::map<cudnnBackendAttributeName_t, Attribute> attributes;
  bool finalized = false;
  GraphPart* graph = nullptr;  ///< of a configuration
  Algorithm behaviour = runs;  ///< likewise

  template <class T>
  const T* values(cudnnBackendAttributeName_t name) const {
    return reinterpret_cast<const T*>(attributes.at(name).bytes.data());
  }
  const GraphPart& part(cudnnBackendAttributeName_t name) const { return **values<GraphPart*>(name); }
  /// Whether it has these attributes, each with its number of values.
  bool has(std::initializer_list<std::pair<cudnnBackendAttributeName_t, int64_t>> wanted) const {
    return std::ranges::all_of(wanted, [&](const auto& one) {
      const auto found = attributes.find(one.first);
      return found != attributes.end() && found->second.count == one.second;
    });
  }
};

GraphPart& of(cudnnBackendDescriptor_t descriptor) { return *static_cast<GraphPart*>(descriptor); }

size_t size_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
      return 1;
    default:
      return 4;  // enumerations, int32 and float32
  }
}

int64_t name_of(const GraphPart& tensor) { return *tensor.values<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID); }

/// A convolution, a bias and perhaps a ReLU. Each takes the output of the one before.
bool is_whole_graph(const GraphPart& graph) {
  const Attribute& operations = graph.attributes.at(CUDNN_ATTR_OPERATIONGRAPH_OPS);
  const auto* parts = graph.values<GraphPart*>(CUDNN_ATTR_OPERATIONGRAPH_OPS);
  if (operations.count < 2 || operations.count > 3) return false;
  int64_t last = name_of(parts[0]->part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y));
  for (int64_t i = 1; i < operations.count; ++i) {
    const GraphPart& pointwise = parts[i]->part(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    const auto mode = *pointwise.values<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
    if (mode != (i == 1 ? CUDNN_POINTWISE_ADD : CUDNN_POINTWISE_RELU_FWD)) return false;
    if (name_of(parts[i]->part(CUDNN_ATTR_OPERATION_POINTWISE_XDESC)) != last) return false;
    last = name_of(parts[i]->part(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
  }
  const GraphPart& result = parts[operations.count - 1]->part(CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
  return !*result.values<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL);
}

bool is_whole(const GraphPart& part) {
  switch (part.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
      return part.has({{CUDNN_ATTR_TENSOR_UNIQUE_ID, 1},
                       {CUDNN_ATTR_TENSOR_DATA_TYPE, 1},
                       {CUDNN_ATTR_TENSOR_DIMENSIONS, 4},
                       {CUDNN_ATTR_TENSOR_STRIDES, 4},
                       {CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 1},
                       {CUDNN_ATTR_TENSOR_IS_VIRTUAL, 1}});
    case CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR:
      return part.has({{CUDNN_ATTR_CONVOLUTION_COMP_TYPE, 1},
                       {CUDNN_ATTR_CONVOLUTION_CONV_MODE, 1},
                       {CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, 1},
                       {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, 2},
                       {CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, 2},
                       {CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, 2},
                       {CUDNN_ATTR_CONVOLUTION_DILATIONS, 2}});
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR:
      return part.has({{CUDNN_ATTR_POINTWISE_MODE, 1}, {CUDNN_ATTR_POINTWISE_MATH_PREC, 1}});
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
      return part.has({{CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, 1},
                       {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, 1},
                       {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, 1},
                       {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, 1},
                       {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, 1},
                       {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, 1}});
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
      return part.has({{CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, 1},
                       {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, 1},
                       {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, 1}});
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      return part.attributes.contains(CUDNN_ATTR_OPERATIONGRAPH_OPS) && is_whole_graph(part);
    case CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR:
      return part.has({{CUDNN_ATTR_DEVICEPROP_DEVICE_ID, 1}});
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
      return part.has({{CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, 1},
                       {CUDNN_ATTR_ENGINEHEUR_MODE, 1},
                       {CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, 1}});
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
      return part.has({{CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, 1}, {CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, 1}});
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR:
      return part.has({{CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, 4},
                       {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, 4},
                       {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, 1}});
    default:
      return false;
  }
}

/// The plans that heuristics offer, the most promising first, and many more.
std::vector<Algorithm> offers(const GraphPart& heuristic) {
  if (*heuristic.values<cudnnBackendHeurMode_t>(CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_FALLBACK) return {runs};
  std::vector<Algorithm> plans = {refuses_everything, refuses_graphs, differs_from_run_to_run};
  plans.resize(40, runs);
  return plans;
}

cudnnTensorStruct tensor_of(const GraphPart& part) {
  cudnnTensorStruct tensor{*part.values<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE), {}, {}};
  std::copy_n(part.values<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS), 4, tensor.sizes);
  std::copy_n(part.values<int64_t>(CUDNN_ATTR_TENSOR_STRIDES), 4, tensor.strides);
  return tensor;
}

}  // namespace

extern "C" {

/// How often a graph ran, and how many plans were finalised. Tests read them.
int fake_cudnn_graph_runs = 0;
int fake_cudnn_plans = 0;

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor) {
  *descriptor = new GraphPart{type, {}};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete &of(descriptor);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  GraphPart& part = of(descriptor);
  if (part.finalized) return CUDNN_STATUS_BAD_PARAM;
  const auto* bytes = static_cast<const std::byte*>(values);
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
    for (int64_t i = 0; i < count; ++i)
      if (const GraphPart& other = **(static_cast<GraphPart* const*>(values) + i);
          !other.finalized && other.type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)
        return CUDNN_STATUS_BAD_PARAM;
  part.attributes[name] = {type, count, {bytes, bytes + static_cast<size_t>(count) * size_of(type)}};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t wanted, int64_t* count, void* values) {
  const GraphPart& part = of(descriptor);
  if (!part.finalized) return CUDNN_STATUS_BAD_PARAM;
  if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) {
    *static_cast<int64_t*>(values) = 128;
    return CUDNN_STATUS_SUCCESS;
  }
  if (name != CUDNN_ATTR_ENGINEHEUR_RESULTS) return CUDNN_STATUS_NOT_SUPPORTED;
  const std::vector<Algorithm> offered = offers(part);
  *count = static_cast<int64_t>(offered.size());
  for (int64_t i = 0; i < std::min(wanted, *count); ++i) {
    GraphPart& configuration = of(static_cast<cudnnBackendDescriptor_t*>(values)[i]);
    configuration.graph = *part.values<GraphPart*>(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    configuration.behaviour = offered[static_cast<size_t>(i)];
  }
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  GraphPart& part = of(descriptor);
  if (!is_whole(part)) return CUDNN_STATUS_BAD_PARAM;
  if (part.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR &&
      part.part(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).behaviour == refuses_everything)
    return CUDNN_STATUS_NOT_SUPPORTED;
  part.finalized = true;
  if (part.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) ++fake_cudnn_plans;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t operands) {
  const GraphPart& configuration = of(plan).part(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
  if (configuration.behaviour == refuses_graphs && handle->stream->capturing()) return CUDNN_STATUS_NOT_SUPPORTED;
  const GraphPart& graph = *configuration.graph;
  const auto* operations = graph.values<GraphPart*>(CUDNN_ATTR_OPERATIONGRAPH_OPS);
  const int64_t count = graph.attributes.at(CUDNN_ATTR_OPERATIONGRAPH_OPS).count;
  const GraphPart& convolution = *operations[0];
  const GraphPart& sliding = convolution.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC);
  const GraphPart& filters = convolution.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W);
  const GraphPart& x = convolution.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X);
  const GraphPart& bias = operations[1]->part(CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
  const GraphPart& y = operations[count - 1]->part(CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
  const auto data = [&](const GraphPart& tensor) -> void* {
    const GraphPart& pack = of(operands);
    const auto* names = pack.values<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    return pack.values<void*>(
        CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS)[std::find(names, names + 4, name_of(tensor)) - names];
  };
  const cudnnTensorStruct w = tensor_of(filters);
  const FusedConvolution fused = {
      tensor_of(x),
      {w.type, w.sizes[0], w.sizes[1], w.sizes[2], w.sizes[3]},
      {static_cast<int>(*sliding.values<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS)),
       static_cast<int>(*sliding.values<int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES)), CUDNN_DEFAULT_MATH},
      tensor_of(y),
      *convolution.values<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA),
      count == 3};
  if (fails(fused.x_desc)) return CUDNN_STATUS_EXECUTION_FAILED;
  if (w.strides[1] != 1 || !fit(fused.x_desc, fused.w_desc, fused.conv, fused.y_desc)) return CUDNN_STATUS_BAD_PARAM;
  const bool slow = configuration.behaviour == differs_from_run_to_run;
  handle->stream->perform([=, from = data(x), taps = data(filters), offset = data(bias), to = data(y)] {
    if (slow) be_slow();
    ++fake_cudnn_graph_runs;
    fused.run(from, taps, offset, to);
  });
  return CUDNN_STATUS_SUCCESS;
}

}  // extern "C"
