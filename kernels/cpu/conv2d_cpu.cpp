#include <algorithm>
#include <array>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/convolutions_cpu.h"
#include "kernels/cpu/decode_cpu.h"
#include "kernels/cpu/narrow_weight.h"
#include "kernels/cpu/weight_cpu.h"

namespace nibblenet {
namespace {

using Desc = dnnl::memory::desc;
using Tag = dnnl::memory::format_tag;

Desc activation_desc(const Shape& nhwc) {
  return {{nhwc[0], nhwc[3], nhwc[1], nhwc[2]}, dnnl::memory::data_type::f32, Tag::nhwc};
}
Desc filter_desc(const Shape& kcrs) {
  return {{kcrs[0], kcrs[1], kcrs[2], kcrs[3]}, dnnl::memory::data_type::f32, Tag::any};
}
Desc bias_desc(int64_t channels) { return {{channels}, dnnl::memory::data_type::f32, Tag::a}; }

/// Geometry of a convolution: enough to compile any of its three passes.
struct Geometry {
  Shape x;
  Shape w;
  Shape y;
  Window window;

  dnnl::memory::dims strides() const { return {window.stride, window.stride}; }
  dnnl::memory::dims padding() const { return {window.padding, window.padding}; }
};

/// Compiled convolutions that are kept: images of ever new sizes shall not fill the memory.
constexpr size_t most_compiled = 512;

constexpr auto direct = dnnl::algorithm::convolution_direct;

/// Compiles a pass from its parts. `hint` is none, or the forward pass that a backward pass belongs
/// to.
template <class Pass, class... Hint, class... Parts>
typename Pass::primitive_desc compile_pass(const dnnl::engine& engine, const std::tuple<Hint...>& hint,
                                           const Parts&... parts) {
  return std::apply(
      [&](const Hint&... forward) -> typename Pass::primitive_desc {
#if DNNL_VERSION_MAJOR >= 3  // which has no operation descriptors
        return {engine, parts..., forward...};
#else
        return {{parts...}, engine, forward...};
#endif
      },
      hint);
}

dnnl::convolution_forward::primitive_desc forward_desc(const Geometry& g, dnnl::prop_kind kind,
                                                       const dnnl::engine& engine) {
  return compile_pass<dnnl::convolution_forward>(engine, std::tuple(), kind, direct, activation_desc(g.x),
                                                 filter_desc(g.w), bias_desc(g.w[0]), activation_desc(g.y), g.strides(),
                                                 g.padding(), g.padding());
}

dnnl::convolution_backward_data::primitive_desc backward_data_desc(const Geometry& g, const dnnl::engine& engine) {
  return compile_pass<dnnl::convolution_backward_data>(
      engine, std::tuple(forward_desc(g, dnnl::prop_kind::forward_training, engine)), direct, activation_desc(g.x),
      filter_desc(g.w), activation_desc(g.y), g.strides(), g.padding(), g.padding());
}

dnnl::convolution_backward_weights::primitive_desc backward_weights_desc(const Geometry& g,
                                                                         const dnnl::engine& engine) {
  return compile_pass<dnnl::convolution_backward_weights>(
      engine, std::tuple(forward_desc(g, dnnl::prop_kind::forward_training, engine)), direct, activation_desc(g.x),
      filter_desc(g.w), bias_desc(g.w[0]), activation_desc(g.y), g.strides(), g.padding(), g.padding());
}

/// oneDNN takes mutable pointers even for data that it only reads.
dnnl::memory memory_of(const Desc& desc, const dnnl::engine& engine, const float* data) {
  return {desc, engine, const_cast<float*>(data)};
}

}  // namespace

const CpuBackend::Convolutions::Forward& CpuBackend::Convolutions::forward(const Shape& x, const Shape& w,
                                                                           const Shape& y, Window window) {
  const Key key(x, w, window);
  auto found = forwards_.find(key);
  if (found == forwards_.end()) {
    if (forwards_.size() >= most_compiled) forwards_.clear();
    const auto desc = forward_desc({x, w, y, window}, dnnl::prop_kind::forward_inference, engine);
    found = forwards_.emplace(key, Forward{desc, dnnl::convolution_forward(desc)}).first;
  }
  return found->second;
}

void CpuBackend::Convolutions::run(const Forward& forward, float* y, const float* x, const dnnl::memory& filter,
                                   const float* bias) {
  const auto& desc = forward.desc;
  forward.primitive.execute(stream, {{DNNL_ARG_SRC, memory_of(desc.src_desc(), engine, x)},
                                     {DNNL_ARG_WEIGHTS, filter},
                                     {DNNL_ARG_BIAS, memory_of(desc.bias_desc(), engine, bias)},
                                     {DNNL_ARG_DST, memory_of(desc.dst_desc(), engine, y)}});
  stream.wait();
}

dnnl::memory CpuBackend::Convolutions::reordered(const Desc& from, float* source, const Desc& to, float* target) {
  dnnl::memory in(from, engine, source);
  dnnl::memory out(to, engine, target);
  dnnl::reorder(in, out).execute(stream, in, out);
  stream.wait();
  return out;
}

void CpuBackend::conv2d_forward(Activations out, ConstActivations in, Weight& w, TensorView<const float> bias,
                                Window window, Epilogue epilogue) {
  if (out.elements() == 0) return;
  if (const auto* narrow = dynamic_cast<NarrowWeightCpu*>(&w))
    return narrow_conv2d_forward(out, in, *narrow, bias, window, epilogue);
  const TensorView<float> y = out.floats();
  const TensorView<const float> x = in.floats();
  if (w.packed()) {
    packed_conv2d_forward(y, x, w, bias, window, epilogue);
    return;
  }
  const Convolutions::Forward& compiled = convolutions_->forward(x.shape(), w.shape(), y.shape(), window);
  const dnnl::memory filter = static_cast<FloatWeightCpu&>(w).in_layout(compiled.desc.weights_desc(),
                                                                        convolutions_->engine, convolutions_->stream);
  convolutions_->run(compiled, y.data(), x.data(), filter, bias.data());
  // oneDNN's own ReLU turns NaN into 0, which would hide a diverged network.
  if (epilogue == Epilogue::relu) relu_forward(y, y);
}

/// Works panel by panel of output channels: decodes the panel's filters, reorders them for oneDNN's
/// kernel, convolves, and copies the outputs to their channels of y. (oneDNN's fast kernels write
/// dense outputs only.) Images pass in chunks, so that a panel's output is still in the cache when
/// it is copied.
void CpuBackend::packed_conv2d_forward(TensorView<float> y, TensorView<const float> x, Weight& w,
                                       TensorView<const float> bias, Window window, Epilogue epilogue) {
  constexpr int64_t decoded_channels = 64;   // 0.9 MB of float filters for the largest layer
  constexpr int64_t decoded_rows = 8;        // at once, by one thread
  constexpr int64_t chunk_floats = 1 << 20;  // of a panel's output
  constexpr int64_t alignment = 16;          // floats in 64 bytes
  const auto aligned = [](int64_t floats) { return (floats + alignment - 1) / alignment * alignment; };

  const PackedView& packed = static_cast<PackedWeightCpu&>(w).view();
  const int64_t batch = y.size(0), pixels = y.size(1) * y.size(2), channels = y.size(3);
  const bool whole = channels <= decoded_channels;  // one panel writes straight into y
  const int64_t chunk = whole ? batch : std::clamp<int64_t>(chunk_floats / (pixels * decoded_channels), 1, batch);

  for (int64_t first = 0; first < channels; first += decoded_channels) {
    const int64_t rows = std::min(decoded_channels, channels - first);
    const Shape filter_shape{rows, w.shape()[1], w.shape()[2], w.shape()[3]};
    const auto compiled_for = [&](int64_t images) -> const Convolutions::Forward& {
      return convolutions_->forward({images, x.size(1), x.size(2), x.size(3)}, filter_shape,
                                    {images, y.size(1), y.size(2), rows}, window);
    };
    // oneDNN may prefer another filter order for the smaller last chunk.
    const auto floats_for = [&](int64_t images) {
      return aligned(static_cast<int64_t>(compiled_for(images).desc.weights_desc().get_size() / sizeof(float)));
    };
    const int64_t ordered_floats = std::max(floats_for(chunk), batch % chunk == 0 ? 0 : floats_for(batch % chunk));
    const int64_t plain_floats = aligned(filter_shape.elements());
    float* plain = workspace(static_cast<size_t>(plain_floats + ordered_floats + (whole ? 0 : chunk * pixels * rows)));
    float* outputs = plain + plain_floats + ordered_floats;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < rows; k += decoded_rows)
      decode_rows(packed, first + k, std::min(decoded_rows, rows - k), 0, packed.channel_elements,
                  plain + k * packed.channel_elements);

    dnnl::memory filter;
    for (int64_t n = 0; n < batch; n += chunk) {
      const int64_t images = std::min(chunk, batch - n);
      const Convolutions::Forward& compiled = compiled_for(images);
      const Desc order = compiled.desc.weights_desc();
      if (!filter || filter.get_desc() != order)
        filter = convolutions_->reordered(plain_filter_desc(filter_shape), plain, order, plain + plain_floats);
      float* target = whole ? y.data() : outputs;
      convolutions_->run(compiled, target, x.data() + n * x.shape().inner_elements(), filter, bias.data() + first);
      const TensorView<float> written(target, {images, y.size(1), y.size(2), rows});
      if (epilogue == Epilogue::relu) relu_forward(written, written);
      if (whole) continue;
#pragma omp parallel for schedule(static)
      for (int64_t i = 0; i < images * pixels; ++i)
        std::copy_n(outputs + i * rows, rows, y.data() + (n * pixels + i) * channels + first);
    }
  }
}

void CpuBackend::conv2d_backward_data(Activations dx, ConstActivations dy, Weight& w, Window window,
                                      const GradientStore& store) {
  if (dx.elements() == 0) return;
  const dnnl::engine& engine = convolutions_->engine;
  dnnl::stream& stream = convolutions_->stream;
  const auto desc = backward_data_desc({dx.shape(), w.shape(), dy.shape(), window}, engine);
  const Desc plain_desc = plain_filter_desc(w.shape());
  const dnnl::memory filter = desc.weights_desc() == plain_desc
                                  ? memory_of(plain_desc, engine, w.values().data())
                                  : convolutions_->reordered(plain_desc, w.values().data(), desc.weights_desc(),
                                                             workspace(desc.weights_desc().get_size() / sizeof(float)));
  dnnl::convolution_backward_data(desc).execute(
      stream, {{DNNL_ARG_DIFF_DST, memory_of(desc.diff_dst_desc(), engine, dy.floats().data())},
               {DNNL_ARG_WEIGHTS, filter},
               {DNNL_ARG_DIFF_SRC, memory_of(desc.diff_src_desc(), engine, dx.floats().data())}});
  stream.wait();
  finish_gradient(dx, store);
}

void CpuBackend::conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, ConstActivations dy,
                                        ConstActivations x, Window window) {
  if (x.elements() == 0) {
    std::fill(dw.begin(), dw.end(), 0.0F);
    std::fill(dbias.begin(), dbias.end(), 0.0F);
    return;
  }
  const dnnl::engine& engine = convolutions_->engine;
  dnnl::stream& stream = convolutions_->stream;
  const auto desc = backward_weights_desc({x.shape(), dw.shape(), dy.shape(), window}, engine);
  dnnl::memory plain = memory_of(plain_filter_desc(dw.shape()), engine, dw.data());
  const bool ordered = desc.diff_weights_desc() != plain.get_desc();
  dnnl::memory gradient = plain;
  if (ordered)
    gradient =
        memory_of(desc.diff_weights_desc(), engine, workspace(desc.diff_weights_desc().get_size() / sizeof(float)));
  dnnl::convolution_backward_weights(desc).execute(
      stream, {{DNNL_ARG_SRC, memory_of(desc.src_desc(), engine, x.floats().data())},
               {DNNL_ARG_DIFF_DST, memory_of(desc.diff_dst_desc(), engine, dy.floats().data())},
               {DNNL_ARG_DIFF_WEIGHTS, gradient},
               {DNNL_ARG_DIFF_BIAS, memory_of(desc.diff_bias_desc(), engine, dbias.data())}});
  if (ordered) dnnl::reorder(gradient, plain).execute(stream, gradient, plain);
  stream.wait();
}

}  // namespace nibblenet
