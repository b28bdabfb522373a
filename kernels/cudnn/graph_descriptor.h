#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "kernels/cudnn/libraries.h"

namespace nibblenet {

/// The name that cuDNN's graphs have for attributes of type T.
template <class T>
constexpr cudnnBackendAttributeType_t attribute_type() {
  if constexpr (std::is_same_v<T, int64_t>) return CUDNN_TYPE_INT64;
  if constexpr (std::is_same_v<T, int32_t>) return CUDNN_TYPE_INT32;
  if constexpr (std::is_same_v<T, float>) return CUDNN_TYPE_FLOAT;
  if constexpr (std::is_same_v<T, bool>) return CUDNN_TYPE_BOOLEAN;
  if constexpr (std::is_same_v<T, char>) return CUDNN_TYPE_CHAR;
  if constexpr (std::is_same_v<T, void*>) return CUDNN_TYPE_VOID_PTR;
  if constexpr (std::is_same_v<T, cudnnDataType_t>) return CUDNN_TYPE_DATA_TYPE;
  if constexpr (std::is_same_v<T, cudnnConvolutionMode_t>) return CUDNN_TYPE_CONVOLUTION_MODE;
  if constexpr (std::is_same_v<T, cudnnPointwiseMode_t>) return CUDNN_TYPE_POINTWISE_MODE;
  if constexpr (std::is_same_v<T, cudnnBackendHeurMode_t>) return CUDNN_TYPE_HEUR_MODE;
}

/// A descriptor of cuDNN's graph interface ("Graph API" in its documentation). Set the attributes,
/// then finalize it. Every function throws CudaError.
class GraphDescriptor {
 public:
  /// Creates a descriptor of this kind.
  explicit GraphDescriptor(cudnnBackendDescriptorType_t type) : descriptor_(nullptr, cudnn().destroy_descriptor) {
    cudnnBackendDescriptor_t descriptor = nullptr;
    check(cudnn().create_descriptor(type, &descriptor), "describing a graph");
    descriptor_.reset(descriptor);
  }

  /// Sets an attribute: values, or another descriptor.
  template <class T>
  GraphDescriptor set(cudnnBackendAttributeName_t name, std::span<const T> values) && {
    return std::move(*this).set(name, attribute_type<T>(), values.size(), values.data());
  }
  template <class T>
  GraphDescriptor set(cudnnBackendAttributeName_t name, std::initializer_list<T> values) && {
    return std::move(*this).set(name, std::span<const T>(values.begin(), values.size()));
  }
  GraphDescriptor set(cudnnBackendAttributeName_t name, std::initializer_list<const GraphDescriptor*> others) && {
    std::vector<cudnnBackendDescriptor_t> descriptors;  // void*, like data pointers
    for (const GraphDescriptor* other : others)
      if (other != nullptr) descriptors.push_back(other->get());
    return std::move(*this).set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, descriptors.size(), descriptors.data());
  }

  cudnnStatus_t try_finalize() { return cudnn().finalize(get()); }
  /// Finalizes the descriptor.
  GraphDescriptor finalize() && {
    check(try_finalize(), "describing a graph");
    return std::move(*this);
  }

  /// Reads an integer attribute.
  int64_t integer(cudnnBackendAttributeName_t name) const {
    int64_t value = 0, count = 0;
    check(cudnn().get_attribute(get(), name, CUDNN_TYPE_INT64, 1, &count, &value), "asking a graph");
    return value;
  }

  cudnnBackendDescriptor_t get() const { return descriptor_.get(); }

 private:
  GraphDescriptor set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, size_t count,
                      const void* values) && {
    check(cudnn().set_attribute(get(), name, type, static_cast<int64_t>(count), values), "describing a graph");
    return std::move(*this);
  }

  std::unique_ptr<void, decltype(Cudnn::destroy_descriptor)> descriptor_;
};

}  // namespace nibblenet
