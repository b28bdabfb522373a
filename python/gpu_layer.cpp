#include "python/gpu_layer.h"

#include <algorithm>

#include "kernels/cuda/weights/device_order.h"
#include "layers/conv2d.h"
#include "layers/linear.h"

namespace nibblenet::python {
namespace {

/// A backend on a caller's stream, and zeros for layers without a bias.
struct StreamBackend {
  GpuCaller caller;
  std::unique_ptr<Backend> backend;
  Buffer<float> zeros;

  StreamBackend(GpuCaller whose, std::unique_ptr<Backend> on) : caller(whose), backend(std::move(on)) {}
};

/// The backend of a GPU and a stream: scratch of one stream's work must not be another's. Those of
/// the last streams are kept. They are never destroyed: the worker's thread outlives main.
StreamBackend& backend_of(GpuCaller caller) {
  constexpr size_t most = 8;
  static auto* kept = new std::vector<std::unique_ptr<StreamBackend>>;
  const auto found = std::ranges::find(*kept, caller, [](const auto& one) { return one->caller; });
  if (found != kept->end()) {
    std::rotate(found, found + 1, kept->end());
  } else {
    auto made = std::make_unique<StreamBackend>(caller, make_backend_on_stream(caller.gpu, caller.stream));
    if (kept->size() == most) kept->erase(kept->begin());
    kept->push_back(std::move(made));
  }
  kept->back()->backend->take_turn();
  return *kept->back();
}

const float* zeros_of(StreamBackend& on, size_t size) {
  if (on.zeros.size() < size) {
    on.backend->grow(on.zeros, size);
    const std::vector<float> values(size);
    on.backend->copy_from_host(on.zeros.data(), values.data(), on.zeros.bytes());
  }
  return on.zeros.data();
}

template <class T>
const T* pointer_to(std::span<const uint8_t> part) {
  return part.empty() ? nullptr : reinterpret_cast<const T*>(part.data());
}

}  // namespace

GpuLayer::GpuLayer(const PackedLayer& form, const LayerBytes& bytes, const std::string& name) : form_(form) {
  form.validate(bytes, name);
  const PackedTensor packed = form.tensor(bytes);
  weight_ = borrow_weight(packed);
  codes_ = to_device_codes(packed, best_layout(packed));
  block_ids_ = to_device_block_ids(packed);
  code_bytes_ = static_cast<int64_t>(codes_.size());
}

GpuLayer::FileOrder GpuLayer::file_order(const LayerBytes& bytes) const {
  form_.expect_sizes(bytes, code_bytes_);
  const PackedTensor packed = form_.tensor(bytes);
  return {from_device_codes(packed, best_layout(packed)), from_device_block_ids(packed)};
}

/// Calls work(backend, weight, bias) with a weight that views the bytes, and x as it reads it.
template <class Work>
void GpuLayer::with_weight(Activations x, const LayerBytes& bytes, GpuCaller caller, Work work) {
  constexpr size_t vector_bytes = 16;  // of a kernel's loads
  form_.expect_sizes(bytes, code_bytes_, vector_bytes);
  StreamBackend& on = backend_of(caller);
  Weight& weight =
      weight_->at({bytes.codes.data(), pointer_to<uint8_t>(bytes.scales), pointer_to<uint8_t>(bytes.zero_points),
                   pointer_to<uint8_t>(bytes.block_ids), pointer_to<float>(bytes.codebook)});
  const int64_t channels = form_.shape()[0];
  const float* bias = bytes.bias.empty() ? zeros_of(on, static_cast<size_t>(channels)) : pointer_to<float>(bytes.bias);
  if (weight.rotation()) on.backend->hadamard(x, x, weight.rotation());
  work(*on.backend, weight, TensorView<const float>(bias, {channels}));
}

void GpuLayer::linear(Activations y, Activations x, const LayerBytes& bytes, GpuCaller caller) {
  expect_shape(y.shape(), linear_output_shape(x.shape(), form_.shape()), "linear output");
  with_weight(x, bytes, caller, [&](Backend& backend, Weight& weight, TensorView<const float> bias) {
    linear_forward(backend, y, x, weight, bias, Epilogue::none);
  });
}

void GpuLayer::conv2d(Activations y, Activations x, Window window, const LayerBytes& bytes, GpuCaller caller) {
  expect_shape(y.shape(), conv2d_output_shape(x.shape(), form_.shape(), window), "convolution output");
  with_weight(x, bytes, caller, [&](Backend& backend, Weight& weight, TensorView<const float> bias) {
    conv2d_forward(backend, y, x, weight, bias, window, Epilogue::none);
  });
}

}  // namespace nibblenet::python
