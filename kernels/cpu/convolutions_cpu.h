#pragma once

#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>

#include "kernels/cpu/backend_cpu.h"

namespace nibblenet {

/// oneDNN's engine and stream, and a cache of compiled forward convolutions. Choosing an
/// implementation takes longer than running a small one. Backward passes need no cache: a training
/// step takes much longer, and oneDNN has a cache of its own.
struct CpuBackend::Convolutions {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};

  /// A compiled forward convolution.
  struct Forward {
    dnnl::convolution_forward::primitive_desc desc;
    dnnl::convolution_forward primitive;
  };
  /// Returns the compiled convolution of these shapes, valid until the next call; and runs it.
  const Forward& forward(const Shape& x, const Shape& w, const Shape& y, Window window);
  void run(const Forward& forward, float* y, const float* x, const dnnl::memory& filter, const float* bias);
  /// Copies a tensor to another layout. Returns the copy.
  dnnl::memory reordered(const dnnl::memory::desc& from, float* source, const dnnl::memory::desc& to, float* target);

 private:
  using Key = std::tuple<Shape, Shape, Window>;  ///< of x and of the filters
  std::map<Key, Forward> forwards_;
};

}  // namespace nibblenet
