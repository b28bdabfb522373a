#pragma once

#include <array>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>

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
  /// Returns the compiled convolution of these shapes, and runs it.
  const Forward& forward(const Shape& x, const Shape& w, const Shape& y, Window window);
  void run(const Forward& forward, float* y, const float* x, const dnnl::memory& filter, const float* bias);
  /// Copies a tensor to another layout. Returns the copy.
  dnnl::memory reordered(const dnnl::memory::desc& from, float* source, const dnnl::memory::desc& to, float* target);

 private:
  struct Key {
    Shape x;
    Shape w;
    int64_t stride;
    int64_t padding;
    friend bool operator<(const Key& a, const Key& b) { return a.parts() < b.parts(); }
    std::array<int64_t, 10> parts() const { return {x[0], x[1], x[2], x[3], w[0], w[1], w[2], w[3], stride, padding}; }
  };
  std::map<Key, Forward> forwards_;
};

}  // namespace nibblenet
