#include <algorithm>
#include <array>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/convolutions_cpu.h"
#include "kernels/cpu/decode_cpu.h"
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

/// What one convolution looks like: enough to compile any of its three passes.
struct Geometry {
  Shape x;
  Shape w;
  Shape y;
  Window window;

  dnnl::memory::dims strides() const { return {window.stride, window.stride}; }
  dnnl::memory::dims padding() const { return {window.padding, window.padding}; }
};

constexpr auto direct = dnnl::algorithm::convolution_direct;

// oneDNN 3 took the operation descriptors away and passes their parts to the primitive descriptors.
dnnl::convolution_forward::primitive_desc forward_desc(const Geometry& g, dnnl::prop_kind kind,
                                                       const dnnl::engine& engine) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine,
          kind,
          direct,
          activation_desc(g.x),
          filter_desc(g.w),
          bias_desc(g.w[0]),
          activation_desc(g.y),
          g.strides(),
          g.padding(),
          g.padding()};
#else
  return {{kind, direct, activation_desc(g.x), filter_desc(g.w), bias_desc(g.w[0]), activation_desc(g.y), g.strides(),
           g.padding(), g.padding()},
          engine};
#endif
}

dnnl::convolution_backward_data::primitive_desc backward_data_desc(const Geometry& g, const dnnl::engine& engine) {
  const auto hint = forward_desc(g, dnnl::prop_kind::forward_training, engine);
#if DNNL_VERSION_MAJOR >= 3
  return {engine,      direct, activation_desc(g.x), filter_desc(g.w), activation_desc(g.y), g.strides(), g.padding(),
          g.padding(), hint};
#else
  return {{direct, activation_desc(g.x), filter_desc(g.w), activation_desc(g.y), g.strides(), g.padding(), g.padding()},
          engine,
          hint};
#endif
}

dnnl::convolution_backward_weights::primitive_desc backward_weights_desc(const Geometry& g,
                                                                         const dnnl::engine& engine) {
  const auto hint = forward_desc(g, dnnl::prop_kind::forward_training, engine);
#if DNNL_VERSION_MAJOR >= 3
  return {engine,
          direct,
          activation_desc(g.x),
          filter_desc(g.w),
          bias_desc(g.w[0]),
          activation_desc(g.y),
          g.strides(),
          g.padding(),
          g.padding(),
          hint};
#else
  return {{direct, activation_desc(g.x), filter_desc(g.w), bias_desc(g.w[0]), activation_desc(g.y), g.strides(),
           g.padding(), g.padding()},
          engine,
          hint};
#endif
}

/// oneDNN takes pointers to mutable data also for what it only reads.
dnnl::memory memory_of(const Desc& desc, const dnnl::engine& engine, const float* data) {
  return {desc, engine, const_cast<float*>(data)};
}

}  // namespace

dnnl::convolution_forward::primitive_desc CpuBackend::Convolutions::forward(const Shape& x, const Shape& w,
                                                                            const Shape& y, Window window) {
  const Key key{x, w, window.stride, window.padding};
  auto found = forwards_.find(key);
  if (found == forwards_.end())
    found = forwards_.emplace(key, forward_desc({x, w, y, window}, dnnl::prop_kind::forward_inference, engine)).first;
  return found->second;
}

void CpuBackend::conv2d_forward(TensorView<float> y, TensorView<const float> x, Weight& w, TensorView<const float> bias,
                                Window window, Epilogue epilogue) {
  if (y.elements() == 0) return;
  const auto desc = convolutions_->forward(x.shape(), w.shape(), y.shape(), window);
  const dnnl::engine& engine = convolutions_->engine;
  dnnl::stream& stream = convolutions_->stream;

  dnnl::memory filter;
  if (w.packed()) {
    // The filters of one layer are decoded into scratch that all layers share, then put into the kernel's order.
    const PackedView& packed = static_cast<PackedWeightCpu&>(w).view();
    const size_t plain_floats = static_cast<size_t>(w.shape().elements());
    const size_t ordered_floats = desc.weights_desc().get_size() / sizeof(float);
    const size_t ordered_offset = (plain_floats + 15) / 16 * 16;  // keeps 64-byte alignment
    float* scratch = workspace(ordered_offset + ordered_floats);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < packed.channels; ++k)
      decode(packed, k, 0, packed.channel_elements, scratch + k * packed.channel_elements);
    dnnl::memory plain = memory_of(plain_filter_desc(w.shape()), engine, scratch);
    filter = memory_of(desc.weights_desc(), engine, scratch + ordered_offset);
    dnnl::reorder(plain, filter).execute(stream, plain, filter);
  } else {
    filter = static_cast<FloatWeightCpu&>(w).in_layout(desc.weights_desc(), engine, stream);
  }
  dnnl::convolution_forward(desc).execute(stream, {{DNNL_ARG_SRC, memory_of(desc.src_desc(), engine, x.data())},
                                                   {DNNL_ARG_WEIGHTS, filter},
                                                   {DNNL_ARG_BIAS, memory_of(desc.bias_desc(), engine, bias.data())},
                                                   {DNNL_ARG_DST, memory_of(desc.dst_desc(), engine, y.data())}});
  stream.wait();
  // Not by oneDNN's own relu: it makes 0 of NaN, and a diverged network would look healthy.
  if (epilogue == Epilogue::relu) relu_forward(y, y);
}

void CpuBackend::conv2d_backward_data(TensorView<float> dx, TensorView<const float> dy, Weight& w, Window window) {
  if (dx.elements() == 0) return;
  const dnnl::engine& engine = convolutions_->engine;
  dnnl::stream& stream = convolutions_->stream;
  const auto desc = backward_data_desc({dx.shape(), w.shape(), dy.shape(), window}, engine);
  const dnnl::memory plain = memory_of(plain_filter_desc(w.shape()), engine, w.values().data());
  dnnl::memory filter = plain;
  if (desc.weights_desc() != plain.get_desc()) {
    filter = memory_of(desc.weights_desc(), engine, workspace(desc.weights_desc().get_size() / sizeof(float)));
    dnnl::reorder(plain, filter).execute(stream, const_cast<dnnl::memory&>(plain), filter);
  }
  dnnl::convolution_backward_data(desc).execute(
      stream, {{DNNL_ARG_DIFF_DST, memory_of(desc.diff_dst_desc(), engine, dy.data())},
               {DNNL_ARG_WEIGHTS, filter},
               {DNNL_ARG_DIFF_SRC, memory_of(desc.diff_src_desc(), engine, dx.data())}});
  stream.wait();
}

void CpuBackend::conv2d_backward_weight(TensorView<float> dw, TensorView<float> dbias, TensorView<const float> dy,
                                        TensorView<const float> x, Window window) {
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
      stream, {{DNNL_ARG_SRC, memory_of(desc.src_desc(), engine, x.data())},
               {DNNL_ARG_DIFF_DST, memory_of(desc.diff_dst_desc(), engine, dy.data())},
               {DNNL_ARG_DIFF_WEIGHTS, gradient},
               {DNNL_ARG_DIFF_BIAS, memory_of(desc.diff_bias_desc(), engine, dbias.data())}});
  if (ordered) dnnl::reorder(gradient, plain).execute(stream, gradient, plain);
  stream.wait();
}

}  // namespace nibblenet
