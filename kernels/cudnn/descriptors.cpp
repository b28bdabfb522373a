#include "kernels/cudnn/descriptors.h"

#include <limits>

namespace nibblenet {

int small(int64_t size) {
  if (size > std::numeric_limits<int>::max())
    fail<ShapeError>("a size of {} is more than cuDNN can count; use a smaller batch", size);
  return static_cast<int>(size);
}

TensorDescriptor describe_tensor(const int (&sizes)[4], const int (&strides)[4], Precision precision) {
  TensorDescriptor tensor = make_descriptor(cudnn().create_tensor, cudnn().destroy_tensor);
  check(cudnn().set_tensor(tensor.get(), cudnn_type(precision), sizes[0], sizes[1], sizes[2], sizes[3], strides[0],
                           strides[1], strides[2], strides[3]),
        "describing a tensor");
  return tensor;
}

TensorDescriptor describe_images(const Shape& shape, Precision precision) {
  const int n = small(shape[0]), h = small(shape[1]), w = small(shape[2]), c = small(shape[3]);
  return describe_tensor({n, c, h, w}, {small(shape[1] * shape[2] * shape[3]), 1, small(shape[2] * shape[3]), c},
                         precision);
}

FilterDescriptor describe_filters(int64_t k, int64_t c, int64_t size, Precision precision) {
  FilterDescriptor filters = make_descriptor(cudnn().create_filter, cudnn().destroy_filter);
  check(cudnn().set_filter(filters.get(), cudnn_type(precision), CUDNN_TENSOR_NHWC, small(k), small(c), small(size),
                           small(size)),
        "describing filters");
  return filters;
}

ConvolutionDescriptor describe_convolution(Window window, Precision precision) {
  ConvolutionDescriptor convolution = make_descriptor(cudnn().create_convolution, cudnn().destroy_convolution);
  const int padding = small(window.padding), stride = small(window.stride);
  check(cudnn().set_convolution(convolution.get(), padding, padding, stride, stride, 1, 1, CUDNN_CROSS_CORRELATION,
                                CUDNN_DATA_FLOAT),
        "describing a convolution");
  check(cudnn().set_convolution_math(convolution.get(),
                                     precision == Precision::float16 ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH),
        "describing a convolution");
  return convolution;
}

ActivationDescriptor describe_activation(cudnnActivationMode_t mode) {
  ActivationDescriptor activation = make_descriptor(cudnn().create_activation, cudnn().destroy_activation);
  check(cudnn().set_activation(activation.get(), mode, CUDNN_PROPAGATE_NAN, 0.0), "describing an activation");
  return activation;
}

PoolingDescriptor describe_max_pooling(Window window) {
  PoolingDescriptor pooling = make_descriptor(cudnn().create_pooling, cudnn().destroy_pooling);
  const int size = small(window.size), padding = small(window.padding), stride = small(window.stride);
  check(cudnn().set_pooling(pooling.get(), CUDNN_POOLING_MAX_DETERMINISTIC, CUDNN_PROPAGATE_NAN, size, size, padding,
                            padding, stride, stride),
        "describing a pooling");
  return pooling;
}

}  // namespace nibblenet
