#include "kernels/cudnn/backend_cudnn.h"

#include "kernels/cuda/weights/weight_cuda.h"

namespace nibblenet {
namespace {

/// Whether a filter has the same order in PyTorch (channel by channel) and in cuDNN (tap by tap).
bool one_tap(const Shape& shape) { return shape.rank() == 2 || shape[2] * shape[3] == 1; }

struct FilterOrders {
  TensorDescriptor torch;  ///< [K, C, R, S] in PyTorch's order
  TensorDescriptor cudnn;  ///< the same sizes, stored as [K, R, S, C]
};

FilterOrders orders_of(const Shape& shape) {
  const int k = small(shape[0]), c = small(shape[1]), r = small(shape[2]), s = small(shape[3]);
  const int length = c * r * s;
  return {describe_tensor({k, c, r, s}, {length, r * s, s, 1}, Precision::float32),
          describe_tensor({k, c, r, s}, {length, 1, s * c, c}, Precision::float32)};
}

/// Gradients of an empty batch.
void clear(TensorView<float> dw, TensorView<float> dbias, Stream& stream) {
  fill_zero(dw.data(), dw.span().size_bytes(), stream);
  fill_zero(dbias.data(), dbias.span().size_bytes(), stream);
}

/// A matrix [N, K] as images of one pixel.
TensorView<const float> as_images(TensorView<const float> matrix) {
  return {matrix.data(), {matrix.size(0), 1, 1, matrix.size(1)}};
}

}  // namespace

/// A dequantized weight. Float32: PyTorch's order, in which it is trained and saved, and a copy in
/// cuDNN's order at a fixed address, for graphs. Float16: cuDNN's order, which is our device order.
/// Float16 matrices are normalised: cuBLASLt undoes a factor for free; cuDNN's graphs would need
/// one more operation.
class CudnnBackend::WeightCudnn final : public WeightCuda {
 public:
  WeightCudnn(CudnnBackend& backend, TensorView<const float> values, Precision precision)
      : WeightCuda(backend, values, precision, backend.stream(), WeightLayout::channels, values.shape().rank() == 2),
        backend_(backend) {
    if (form() != WeightForm::float32 || one_tap(shape())) return;
    filters = Buffer<float>(backend, static_cast<size_t>(shape().elements()), MemoryCategory::workspace);
    backend.reorder(filters, floats());
  }
  void changed() override {
    if (filters.size() > 0) backend_.reorder(filters, floats());
  }

  Buffer<float> filters;
  Buffer<f16> half_bias;  ///< made at the first use: inference changes no bias

 private:
  CudnnBackend& backend_;
};

CudnnBackend::CudnnBackend()
    : handle_(make_descriptor(cudnn().create, cudnn().destroy)),
      relu_(describe_activation(CUDNN_ACTIVATION_RELU)),
      convolution_(handle_.get(), stream(), [this](size_t bytes) { return workspace(bytes); }),
      matmul_(stream(), [this](size_t bytes) { return workspace(bytes); }) {
  check(cudnn().set_stream(handle_.get(), stream().get()), "giving cuDNN a stream");
}

std::string CudnnBackend::description() const {
  const size_t version = cudnn().get_version();
  const size_t lt = cublas_lt().get_version();
  return fmt::format("cuDNN {}.{}.{} and cuBLASLt {}.{}.{} on dequantized weights, {}", version / 10000,
                     version / 100 % 100, version % 100, lt / 10000, lt / 100 % 100, lt % 100,
                     CudaBackend::description());
}

void* CudnnBackend::workspace(size_t bytes) {
  if (workspace_.size() < bytes) scratch_moved();
  grow(workspace_, bytes);
  return workspace_.data();
}

std::unique_ptr<Recording> CudnnBackend::record(const std::function<void()>& work) {
  if (!records_) return nullptr;
  try {
    return CudaBackend::record(work);
  } catch (const CudaError&) {
    records_ = false;
    return nullptr;
  }
}

std::unique_ptr<Weight> CudnnBackend::make_weight(TensorView<const float> host_values, Precision precision) {
  return std::make_unique<WeightCudnn>(*this, host_values, precision);
}

std::unique_ptr<Weight> CudnnBackend::make_weight(const PackedTensor& packed, Precision precision, const InputRange&) {
  Tensor<float> values(host_memory(), packed.shape, MemoryCategory::data);
  dequantize(packed, values.view());
  return make_weight(std::as_const(values).view(), precision);
}

std::unique_ptr<FoldedConv2d> CudnnBackend::make_folded_conv2d(const FoldedConvolution&, Precision) {
  throw UsageError("--device cudnn does not fold the first convolution with the resize; leave --fold-first out");
}

void CudnnBackend::reorder(Buffer<float>& filters, TensorView<const float> values) {
  const FilterOrders orders = orders_of(values.shape());
  check(cudnn().transform(handle_.get(), &one, orders.torch.get(), values.data(), &zero, orders.cudnn.get(),
                          filters.data()),
        "reordering filters");
}

const void* CudnnBackend::filters(const WeightCudnn& weight, Precision precision) {
  const bool fp16 = weight.form() == WeightForm::float16;
  if (fp16 != (precision == Precision::float16))
    fail<Error>("{} activations need weights of their precision", to_string(precision));
  if (fp16) return weight.fp16();
  return one_tap(weight.shape()) ? weight.floats().data() : weight.filters.data();
}

const void* CudnnBackend::bias_as(WeightCudnn& weight, TensorView<const float> bias, Precision precision) {
  if (precision == Precision::float32) return bias.data();
  if (weight.half_bias.size() == 0) {
    weight.half_bias = Buffer<f16>(*this, static_cast<size_t>(bias.elements()), MemoryCategory::workspace);
    convert(TensorView<f16>(weight.half_bias.data(), bias.shape()), bias);
  }
  return weight.half_bias.data();
}

void CudnnBackend::conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                                  Window window, Epilogue epilogue) {
  auto& weight = static_cast<WeightCudnn&>(w);
  const void* taps = filters(weight, x.precision());
  if (y.precision() != x.precision()) throw Error("cuDNN's convolutions write the precision that they read");
  if (y.elements() == 0) return;
  convolution_.forward(y, x, taps, bias_as(weight, bias, y.precision()), window, epilogue);
}

void CudnnBackend::conv2d_backward_data(Activations dx, ConstActivations dy, Weight& w, Window window,
                                        const GradientStore& store) {
  auto& weight = static_cast<WeightCudnn&>(w);
  if (dx.elements() == 0) return;
  const auto* taps = static_cast<const float*>(filters(weight, Precision::float32));
  convolution_.backward_data(dx.floats(), dy.floats(), taps, window);
  finish_gradient(dx, store);
}

void CudnnBackend::conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                          ConstActivations x, Window window) {
  if (dy.elements() == 0) return clear(dw, dbias, stream());
  convolution_.backward_bias(dbias, dy.floats());
  if (one_tap(dw.shape())) {
    convolution_.backward_filters(dw.data(), dy.floats(), x.floats(), window);
    return;
  }
  grow(dfilters_, static_cast<size_t>(dw.elements()));
  convolution_.backward_filters(dfilters_.data(), dy.floats(), x.floats(), window);
  const FilterOrders orders = orders_of(dw.shape());
  check(cudnn().transform(handle_.get(), &one, orders.cudnn.get(), dfilters_.data(), &zero, orders.torch.get(),
                          dw.data()),
        "reordering filters");
}

void CudnnBackend::linear_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                                  Epilogue epilogue) {
  auto& weight = static_cast<WeightCudnn&>(w);
  const void* matrix = filters(weight, x.precision());
  if (y.elements() == 0) return;
  matmul_.product(y.data(), {x.data(), false}, {matrix, true}, y.size(0), y.size(1), x.size(1), x.precision(),
                  y.precision(), 1.0F / weight.normalisation(), bias_as(weight, bias, y.precision()), epilogue);
}

void CudnnBackend::linear_backward_data(Activations dx, ConstActivations dy, Weight& w, const GradientStore& store) {
  auto& weight = static_cast<WeightCudnn&>(w);
  if (dx.elements() == 0) return;
  matmul_.product(dx.floats().data(), {dy.floats().data(), false}, {filters(weight, Precision::float32), false},
                  dx.size(0), dx.size(1), dy.size(1), Precision::float32, Precision::float32);
  finish_gradient(dx, store);
}

void CudnnBackend::linear_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                          ConstActivations x) {
  if (dy.elements() == 0) return clear(dw, dbias, stream());
  convolution_.backward_bias(dbias, as_images(dy.floats()));
  matmul_.product(dw.data(), {dy.floats().data(), true}, {x.floats().data(), false}, dw.size(0), dw.size(1), dy.size(0),
                  Precision::float32, Precision::float32);
}

void CudnnBackend::relu_forward(TensorView<float> y, TensorView<const float> x) {
  if (y.elements() == 0) return;
  const TensorDescriptor all = describe_images({1, 1, 1, y.elements()}, Precision::float32);
  check(cudnn().activation_forward(handle_.get(), relu_.get(), &one, all.get(), x.data(), &zero, all.get(), y.data()),
        "ReLU");
}

void CudnnBackend::relu_backward(Activations dx, ConstActivations dy, ConstActivations y) {
  if (dx.elements() == 0) return;
  const TensorDescriptor all = describe_images({1, 1, 1, dx.elements()}, Precision::float32);
  // y can stand in for x: both are positive in the same places.
  const float* output = y.floats().data();
  check(cudnn().activation_backward(handle_.get(), relu_.get(), &one, all.get(), output, all.get(), dy.floats().data(),
                                    all.get(), output, &zero, all.get(), dx.floats().data()),
        "gradient of ReLU");
}

void CudnnBackend::max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window) {
  if (argmax.data() != nullptr) {
    CudaBackend::max_pool2d_forward(y, argmax, x, window);
    return;
  }
  if (y.elements() == 0) return;
  const PoolingDescriptor pooling = describe_max_pooling(window);
  const TensorDescriptor from = describe_images(x.shape(), x.precision());
  const TensorDescriptor to = describe_images(y.shape(), y.precision());
  check(cudnn().pooling_forward(handle_.get(), pooling.get(), &one, from.get(), x.data(), &zero, to.get(), y.data()),
        "max pooling");
}

}  // namespace nibblenet
