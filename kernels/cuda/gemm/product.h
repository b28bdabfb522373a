#pragma once

#include "kernels/cuda/gemm/product_case.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "kernels/training.h"

// Arguments of the product launchers: a product's case, and its operands. kernels/inference.h and
// kernels/training.h have the formulas and shapes.

namespace nibblenet {

/// Work of a product: operands are read once, results written once.
inline Work work_of(const ConvolutionSizes& s, double weight_bytes, double element_bytes) {
  const double outputs = static_cast<double>(s.outputs()) * s.k;
  return {.bytes = weight_bytes + element_bytes * (outputs + static_cast<double>(s.inputs()) * s.c),
          .flops = 2.0 * outputs * s.length()};
}

/// Notes what a case asks of its operands.
inline void note_operands(ProductCase& c, ConstActivations x, ConstActivations y) {
  c.x = x.precision();
  c.y = y.precision();
  c.x_alignment = alignment_of(x.data());
  c.y_alignment = alignment_of(y.data());
}

/// Forward product: y = epilogue(x w + bias), pooled where the case says so.
struct ForwardProduct {
  ProductCase shape;
  Activations y;
  ConstActivations x;
  const WeightCuda& w;
  TensorView<const float> bias;
  Epilogue epilogue;
};
/// Makes a forward product. Requires shapes that fit. y is pooled where `pool` has a window.
inline ForwardProduct forward_product(Activations y, ConstActivations x, const WeightCuda& w,
                                      TensorView<const float> bias, Window window, Epilogue epilogue,
                                      PoolingCase pool = {}) {
  const Shape shape = pool.window.size > 0 ? product_shape(x.shape(), w.shape(), window) : y.shape();
  ForwardProduct p{product_case(x.shape(), shape, window, w.traits()), y, x, w, bias, epilogue};
  note_operands(p.shape, x, y);
  p.shape.pool = pool;
  return p;
}

/// Data gradient: dx = dy w^T, with the epilogue `store`.
struct DataGradientProduct {
  ProductCase shape;
  Activations dx;
  ConstActivations dy;
  WeightCuda& w;
  const GradientStore& store;
};
/// Makes a data gradient. Requires shapes that fit.
inline DataGradientProduct data_gradient_product(Activations dx, ConstActivations dy, WeightCuda& w, Window window,
                                                 const GradientStore& store) {
  DataGradientProduct p{product_case(dx.shape(), dy.shape(), window, w.traits()), dx, dy, w, store};
  note_operands(p.shape, dx, dy);
  p.shape.x_alignment = std::min(p.shape.x_alignment, alignment_of(store.relu_output.data()));
  return p;
}

/// Weight gradient: stores dw and dbias, or, with `layer`, applies the SGD step of them times
/// `factor`.
struct WeightGradientProduct {
  ProductCase shape;
  ConstActivations dy;
  ConstActivations x;
  TensorView<float> dw = {};
  TensorView<float> dbias = {};
  const TrainedLayer* layer = nullptr;
  float factor = 1.0F;
  SgdParameters sgd = {};
};
/// Makes a weight gradient, whose destination is still to be set. Requires shapes that fit.
inline WeightGradientProduct weight_gradient_product(ConstActivations dy, ConstActivations x, Window window) {
  WeightGradientProduct p{product_case(x.shape(), dy.shape(), window, {}), dy, x};
  note_operands(p.shape, x, dy);
  return p;
}

}  // namespace nibblenet
