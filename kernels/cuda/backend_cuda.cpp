#include "kernels/cuda/backend_cuda.h"

#include <array>
#include <cstdlib>
#include <string_view>

#include "kernels/cuda/activations/half_fit.h"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/linear/launchers.h"

namespace nibblenet {
namespace {

WeightCuda& cuda_weight(Weight& w) { return static_cast<WeightCuda&>(w); }

class RecordingCuda final : public Recording {
 public:
  RecordingCuda(Stream& stream, const int64_t& scratch_moves, const std::function<void()>& work)
      : stream_(stream), scratch_moves_(scratch_moves), moves_before_(scratch_moves), graph_(stream, work) {}

  ~RecordingCuda() override {
    try {
      stream_.synchronize();      // the graph may be running
    } catch (const CudaError&) {  // the next call reports it
    }
  }

  void replay() override { graph_.launch(stream_); }
  bool current() const override { return scratch_moves_ == moves_before_; }
  int64_t operations() const override { return graph_.nodes(); }
  double device_time(int64_t count, const std::function<void()>& before) override {
    if (before) before();
    begin_.record(stream_);
    for (int64_t i = 0; i < count; ++i) replay();
    end_.record(stream_);
    end_.synchronize();
    return static_cast<double>(end_.since(begin_)) / static_cast<double>(count);
  }

 private:
  Stream& stream_;
  const int64_t& scratch_moves_;
  int64_t moves_before_;
  Graph graph_;
  Event begin_, end_;
};

std::string_view wanted_kernels() {
  const char* kernels = std::getenv("NIBBLENET_KERNELS");
  return kernels == nullptr ? "" : kernels;
}

template <class Operands>
using Launcher = void (*)(const Operands& product, Workspace& workspace, Stream& stream);
template <class Operands>
using Launchers = std::array<Launcher<Operands>, product_count>;  // by Product

constexpr Launchers<ForwardProduct> forward_launchers = {
    cuda::few_pixels_forward, cuda::few_rows_forward,     cuda::wgmma_unpacked_forward, cuda::wgmma_forward,
    cuda::mma_forward,        cuda::few_channels_forward, cuda::few_outputs_forward,    cuda::plain_forward};
constexpr Launchers<DataGradientProduct> data_gradient_launchers = {nullptr,
                                                                    nullptr,
                                                                    nullptr,
                                                                    cuda::wgmma_data_gradient,
                                                                    cuda::mma_data_gradient,
                                                                    nullptr,
                                                                    cuda::few_outputs_data_gradient,
                                                                    cuda::plain_data_gradient};
constexpr Launchers<WeightGradientProduct> weight_gradient_launchers = {nullptr,
                                                                        nullptr,
                                                                        nullptr,
                                                                        cuda::wgmma_weight_gradient,
                                                                        cuda::mma_weight_gradient,
                                                                        cuda::few_channels_weight_gradient,
                                                                        cuda::few_outputs_weight_gradient,
                                                                        cuda::plain_weight_gradient};

template <class Operands>
void start(const Launchers<Operands>& launchers, Product product, const Operands& operands, Workspace& workspace,
           Stream& stream) {
  launchers[static_cast<size_t>(product)](operands, workspace, stream);
}

}  // namespace

CudaBackend::CudaBackend() : gpu_{.has_wgmma = device_.has_wgmma()} { choose_kernels(parse_kernels(wanted_kernels())); }

CudaBackend::CudaBackend(CUstream_st* lent) : gpu_{.has_wgmma = device_.has_wgmma()}, stream_(lent) {
  choose_kernels(parse_kernels(wanted_kernels()));
}

void CudaBackend::choose_kernels(KernelChoice choice) {
  if (choice.mode == KernelChoice::Mode::wgmma && !gpu_.has_wgmma)
    throw Error("wgmma needs a GPU of compute capability 9.0, and code compiled for 90a");
  gpu_.choice = choice;
  stream_.allow_pdl(choice.pdl);
  stream_.allow_clusters(choice.clusters);
}

const Nvml* CudaBackend::nvml() {
  try {
    if (!nvml_) nvml_.emplace();
    return &*nvml_;
  } catch (const Error&) {
    return nullptr;
  }
}

std::optional<double> CudaBackend::joules() { return nvml() ? nvml_->joules() : std::nullopt; }

std::optional<DeviceState> CudaBackend::state() { return nvml() ? std::optional(nvml_->state()) : std::nullopt; }

std::unique_ptr<Recording> CudaBackend::record(const std::function<void()>& work) {
  return std::make_unique<RecordingCuda>(stream_, scratch_moves_, work);
}

void CudaBackend::wait_for_stream(uintptr_t stream) {
  Stream other(reinterpret_cast<CUstream_st*>(stream));
  order_.record(other);
  stream_.wait(order_);
}

void CudaBackend::let_stream_wait(uintptr_t stream) {
  Stream other(reinterpret_cast<CUstream_st*>(stream));
  order_.record(stream_);
  other.wait(order_);
}

void CudaBackend::expect_support(Precision precision) const {
  if (precision != storage_of(precision))
    fail<UsageError>("--precision {}: a GPU computes in float32 and float16", to_string(precision));
}

std::unique_ptr<Weight> CudaBackend::make_weight(TensorView<const float> host_values, Precision precision) {
  return std::make_unique<WeightCuda>(*this, host_values, precision, stream_, best_layout(host_values.shape()));
}

std::unique_ptr<Weight> CudaBackend::make_weight(const PackedTensor& packed, Precision, const InputRange&) {
  return std::make_unique<WeightCuda>(*this, packed, stream_, best_layout(packed));
}

std::unique_ptr<Weight> CudaBackend::make_trained_weight(TensorView<const float> host_values) {
  const WeightLayout layout = trained_layout(host_values.shape(), gpu_.may_use(Product::wgmma));
  return std::make_unique<WeightCuda>(*this, host_values, WeightCuda::TrainsInFp16{}, stream_, layout);
}

PackedTensor CudaBackend::quantize(TensorView<const float> host_weights, const Scheme& scheme, std::string_view name) {
  if (scheme.is_rotated())
    return quantize_rotated(host_weights, scheme, name, [&](TensorView<const float> turned, const Scheme& plain) {
      return quantize(turned, plain, name);
    });
  Tensor<float> weights(*this, host_weights.shape(), MemoryCategory::data);
  copy_from_host(weights.data(), host_weights.data(), host_weights.span().size_bytes());
  Buffer<uint32_t> blocks;
  const auto upload = [&]<class T>(std::span<const T> values) {
    Buffer<T> buffer(*this, values.size(), MemoryCategory::data);
    copy_from_host(buffer.data(), values.data(), values.size_bytes());
    return buffer;
  };
  const auto extremes = [&](TensorView<const float> values, const GroupMap& map, std::span<const uint32_t> ids) {
    if (!ids.empty()) blocks = upload(ids);
    const auto groups = static_cast<size_t>(map.groups);
    Buffer<uint64_t> keys(*this, 3 * groups, MemoryCategory::data);
    cuda::find_extremes(keys.data(), std::as_const(weights).view(), map, blocks.data(), stream_);
    std::vector<uint64_t> found(3 * groups);
    copy_to_host(found.data(), keys.data(), keys.bytes());
    return cuda::extremes_from_keys(found, values);
  };
  const auto encode = [&](PackedTensor& packed, TensorView<const float>, const GroupMap& map, std::span<const uint32_t>,
                          std::span<const Step> steps, const Codebook& codebook) {
    Buffer<uint8_t> codes(*this, packed.codes.size(), MemoryCategory::codes);
    const Buffer<Step> device_steps = upload(steps);
    cuda::encode({codes.data(), {packed.shape[0], packed.code_stride()}}, std::as_const(weights).view(), map,
                 blocks.data(), device_steps.data(), codebook, packed.scheme.zero_point, stream_);
    copy_to_host(packed.codes.data(), codes.data(), codes.bytes());
  };
  return nibblenet::quantize(host_weights, scheme, name, {extremes, encode});
}

void CudaBackend::gather_rows(TensorView<float> y, TensorView<const float> x, std::span<const int64_t> rows) {
  grow(rows_, rows.size());
  uploads_.copy(rows_.data(), rows.data(), rows.size_bytes(), stream_);
  cuda::gather_rows(y, x, rows_.data(), stream_);
}

void CudaBackend::conv2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                                 Window window, Epilogue epilogue) {
  const ForwardProduct f = forward_product(y, x, cuda_weight(w), bias, window, epilogue);
  start(forward_launchers, route_forward(f.shape, gpu_).product, f, *this, stream_);
}

void CudaBackend::conv2d_max_pool2d_forward(Activations y, ConstActivations x, Weight& w, TensorView<const float> bias,
                                            Window window, Epilogue epilogue, Window pool) {
  const PoolingCase pooling{pool, y.shape().rank() == 2};
  const ForwardProduct f = forward_product(y, x, cuda_weight(w), bias, window, epilogue, pooling);
  const std::optional<Route> route = route_pooled(f.shape, gpu_);
  if (!route) fail<Error>("no kernel fuses the convolution of {} with max pooling", to_string(x.shape()));
  start(forward_launchers, route->product, f, *this, stream_);
}

std::optional<ForwardRoute> CudaBackend::route(const Weight& w, const ForwardQuestion& question) const {
  return route_of(question, w.shape(), static_cast<const WeightCuda&>(w).traits(), gpu_);
}

void CudaBackend::conv2d_backward_data(Activations dx, ConstActivations dy, Weight& w, Window window,
                                       const GradientStore& store) {
  const DataGradientProduct g = data_gradient_product(dx, dy, cuda_weight(w), window, store);
  const GradientRoute route = route_data_gradient(g.shape, gpu_);
  start(data_gradient_launchers, route.product, g, *this, stream_);
  if (!route.fuses()) finish_gradient(dx, store);
}

void CudaBackend::conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                         ConstActivations x, Window window) {
  WeightGradientProduct g = weight_gradient_product(dy, x, window);
  g.dw = dw;
  g.dbias = dbias;
  start(weight_gradient_launchers, route_weight_gradient(g.shape, gpu_).product, g, *this, stream_);
}

bool CudaBackend::fuses_step(ConstActivations dy, ConstActivations x, Window window) const {
  return route_weight_gradient(weight_gradient_product(dy, x, window).shape, gpu_).fuses();
}

void CudaBackend::backward_step(const TrainedLayer& layer, ConstActivations dy, ConstActivations x, Window window,
                                float factor, SgdParameters parameters) {
  WeightGradientProduct g = weight_gradient_product(dy, x, window);
  g.layer = &layer;
  g.factor = factor;
  g.sgd = parameters;
  const GradientRoute route = route_weight_gradient(g.shape, gpu_);
  if (!route.fuses()) fail<Error>("no kernel fuses the weight gradient of {} with SGD", to_string(x.shape()));
  start(weight_gradient_launchers, route.product, g, *this, stream_);
}

void CudaBackend::max_pool2d_forward(Activations y, TensorView<uint8_t> argmax, ConstActivations x, Window window) {
  if (!plain_alone() && half_pooling::fits(y, argmax.data(), x, window))
    cuda::half_max_pool2d_forward(y, argmax, x, stream_);
  else
    cuda::max_pool2d_forward(y, argmax, x, window, stream_);
}

void CudaBackend::max_pool2d_backward(Activations dx, ConstActivations dy, TensorView<const uint8_t> argmax,
                                      Window window, const GradientStore& store) {
  if (!plain_alone() && half_pooling::fits_backward(dx, dy, argmax.data(), window, store))
    return cuda::half_max_pool2d_backward(dx, dy, argmax, store, stream_);
  cuda::max_pool2d_backward(dx, dy, argmax, window, stream_);
  finish_gradient(dx, store);
}

void CudaBackend::dropout(Activations y, ConstActivations x, float probability, DropoutKey key,
                          const GradientStore& store) {
  if (!plain_alone() && half_dropout::fits(y, x, store))
    return cuda::half_dropout(y, x, probability, key, store, stream_);
  cuda::dropout(y, x, probability, key, stream_);
  finish_gradient(y, store);
}

float* CudaBackend::floats(size_t size) {
  if (workspace_.size() < size) scratch_moved();
  grow(workspace_, size);
  return workspace_.data();
}

unsigned* CudaBackend::counters(size_t size) {
  if (counters_.size() < size) {
    scratch_moved();
    grow(counters_, size);
    fill_zero(counters_.data(), counters_.bytes(), stream_);
  }
  return counters_.data();
}

}  // namespace nibblenet
