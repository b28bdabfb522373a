#pragma once

#include <memory>
#include <type_traits>

#include "kernels/activations.h"
#include "kernels/cudnn/libraries.h"
#include "kernels/shapes.h"

namespace nibblenet {

/// Factors of results and of old values, which cuDNN reads through pointers.
inline constexpr float one = 1.0F, zero = 0.0F;

/// A library's descriptor, destroyed with its owner.
template <class Handle, class Status>
using Descriptor = std::unique_ptr<std::remove_pointer_t<Handle>, Status (*)(Handle)>;

/// Makes a descriptor by the library's function. Throws CudaError.
template <class Handle, class Status>
Descriptor<Handle, Status> make_descriptor(Status (*create)(Handle*), Status (*destroy)(Handle)) {
  Handle handle = nullptr;
  check(create(&handle), "creating a descriptor");
  return {handle, destroy};
}

/// Descriptors of cuDNN's kinds.
using TensorDescriptor = Descriptor<cudnnTensorDescriptor_t, cudnnStatus_t>;
using FilterDescriptor = Descriptor<cudnnFilterDescriptor_t, cudnnStatus_t>;
using ConvolutionDescriptor = Descriptor<cudnnConvolutionDescriptor_t, cudnnStatus_t>;
using ActivationDescriptor = Descriptor<cudnnActivationDescriptor_t, cudnnStatus_t>;
using PoolingDescriptor = Descriptor<cudnnPoolingDescriptor_t, cudnnStatus_t>;

/// The libraries' names of a precision.
constexpr cudnnDataType_t cudnn_type(Precision precision) {
  return precision == Precision::float32 ? CUDNN_DATA_FLOAT : CUDNN_DATA_HALF;
}
constexpr cudaDataType_t cuda_type(Precision precision) {
  return precision == Precision::float32 ? CUDA_R_32F : CUDA_R_16F;
}

/// A dense [N, H, W, C] tensor. Throws ShapeError for sizes beyond cuDNN's 32-bit integers.
TensorDescriptor describe_images(const Shape& shape, Precision precision);
/// [N, C, H, W] with a stride for each of these, in elements.
TensorDescriptor describe_tensor(const int (&sizes)[4], const int (&strides)[4], Precision precision);
/// Dense filters [K, R, S, C].
FilterDescriptor describe_filters(int64_t k, int64_t c, int64_t size, Precision precision);
/// Float32 sums; float32 operands are multiplied in float32, not in TF32.
ConvolutionDescriptor describe_convolution(Window window, Precision precision);
ActivationDescriptor describe_activation(cudnnActivationMode_t mode);
/// Max pooling: padding never wins.
PoolingDescriptor describe_max_pooling(Window window);

/// A size as cuDNN's 32-bit integer. Throws ShapeError beyond it.
int small(int64_t size);

}  // namespace nibblenet
