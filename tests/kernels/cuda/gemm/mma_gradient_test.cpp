#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/cuda/backend_cuda.h"
#include "tests/kernels/cuda/kernel_families.h"
#include "tests/kernels/values.h"
#include "tests/support/golden.h"

// Gradients of float16 activations, on the tensor cores and by the plain kernels, against sums in
// double.

namespace nibblenet {
namespace {

using testing::fp16_on;
using testing::from;
using testing::integers;
using testing::on;
using testing::output_of;
using testing::relative_error;
using testing::same_bits;
using testing::uniform;
using testing::Values;

/// Operands that are fp16 values already: only float32 sums in another order, and dx rounded to 11
/// bits.
constexpr double sum_tolerance = 1e-5;
constexpr double half_tolerance = 5e-4;

struct Case {
  Shape x;  ///< NHWC; a linear layer has images of one pixel
  Shape w;
  Window window = {};
};

/// Around a block's 64 and 128, several blocks each way, strides, no padding, taps that straddle a
/// tile, reductions that are split (split-K), three channels.
const std::vector<Case> convolutions = {
    {{1, 9, 7, 8}, {8, 8, 3, 3}, {3, 1, 1}},    {{2, 5, 6, 72}, {136, 72, 3, 3}, {3, 1, 1}},
    {{1, 8, 9, 16}, {24, 16, 3, 3}, {3, 2, 1}}, {{1, 6, 5, 192}, {8, 192, 2, 2}, {2, 1, 0}},
    {{2, 30, 31, 8}, {8, 8, 2, 2}, {2, 1, 0}},  {{2, 19, 17, 3}, {72, 3, 11, 11}, {11, 4, 2}},
    {{1, 12, 12, 8}, {8, 8, 5, 5}, {5, 1, 2}},  {{3, 4, 4, 136}, {16, 136, 1, 1}, {1, 1, 0}},
    {{1, 31, 29, 3}, {8, 3, 3, 3}, {3, 1, 1}},  {{2, 7, 6, 5}, {8, 5, 3, 3}, {3, 3, 1}},
};
/// Few channels, whose windows begin at whole words: AlexNet's in small; rows of more than 32
/// results, several bands of an image, more of them than a GPU has blocks, several blocks of
/// filters, windows that touch, no padding.
const std::vector<Case> few_channels = {
    {{2, 38, 34, 3}, {64, 3, 11, 11}, {11, 4, 2}}, {{1, 13, 71, 4}, {8, 4, 3, 3}, {3, 1, 1}},
    {{3, 40, 8, 2}, {72, 2, 5, 5}, {5, 2, 1}},     {{150, 6, 4, 2}, {16, 2, 3, 3}, {3, 1, 0}},
    {{1, 9, 12, 6}, {136, 6, 3, 3}, {3, 3, 0}},    {{2, 5, 6, 2}, {8, 2, 1, 1}, {1, 1, 0}},
};
const std::vector<Case> matrices = {
    {{1, 1, 1, 8}, {8, 8, 1, 1}},         {{129, 1, 1, 72}, {136, 72, 1, 1}}, {{300, 1, 1, 16}, {24, 16, 1, 1}},
    {{33, 1, 1, 136}, {1032, 136, 1, 1}}, {{20, 1, 1, 200}, {64, 200, 1, 1}},
};
/// Filters that are no multiple of 8: few filters, sizes around the 64 rows and 64 columns of
/// blocks, and cases of the plain kernels.
const std::vector<Case> odd = {{{9, 1, 1, 40}, {10, 40, 1, 1}},  {{1, 1, 1, 8}, {1, 8, 1, 1}},
                               {{65, 1, 1, 72}, {15, 72, 1, 1}}, {{128, 1, 1, 1024}, {10, 1024, 1, 1}},
                               {{200, 1, 1, 64}, {3, 64, 1, 1}}, {{9, 1, 1, 40}, {17, 40, 1, 1}},
                               {{9, 1, 1, 36}, {10, 36, 1, 1}},  {{1, 5, 6, 8}, {7, 8, 3, 3}, {3, 1, 1}}};

std::string name_of(const Case& c) { return to_string(c.x) + " by " + to_string(c.w); }

Shape output_shape(const Case& c) { return {c.x[0], c.window.output(c.x[1]), c.window.output(c.x[2]), c.w[0]}; }

struct Gradients {
  Values dx, dw, dbias;
};

/// Calls use(index of dy, of x, of w) for every product of the convolution.
template <class Use>
void for_each_product(const Case& c, Use use) {
  const Shape y = output_shape(c);
  const int64_t size = c.window.size;
  for (int64_t pixel = 0; pixel < y[0] * y[1] * y[2]; ++pixel)
    for (int64_t tap = 0; tap < size * size; ++tap) {
      const int64_t h = pixel / y[2] % y[1] * c.window.stride - c.window.padding + tap / size;
      const int64_t w = pixel % y[2] * c.window.stride - c.window.padding + tap % size;
      if (h < 0 || h >= c.x[1] || w < 0 || w >= c.x[2]) continue;
      const int64_t from = ((pixel / y[2] / y[1] * c.x[1] + h) * c.x[2] + w) * c.x[3];
      for (int64_t k = 0; k < y[3]; ++k)
        for (int64_t channel = 0; channel < c.x[3]; ++channel)
          use(static_cast<size_t>(pixel * y[3] + k), static_cast<size_t>(from + channel),
              static_cast<size_t>((k * c.x[3] + channel) * size * size + tap));
    }
}

Values rounded(const Shape& shape, const std::vector<double>& sums) {
  Values values(shape);
  for (size_t i = 0; i < sums.size(); ++i) values.data[i] = static_cast<float>(sums[i]);
  return values;
}

Gradients expected(const Case& c, const Values& dy, const Values& x, const Values& w) {
  std::vector<double> dx(x.data.size()), dw(w.data.size()), dbias(static_cast<size_t>(c.w[0]));
  for_each_product(c, [&](size_t of_y, size_t of_x, size_t of_w) {
    dx[of_x] += static_cast<double>(dy.data[of_y]) * static_cast<double>(w.data[of_w]);
    dw[of_w] += static_cast<double>(dy.data[of_y]) * static_cast<double>(x.data[of_x]);
  });
  for (size_t i = 0; i < dy.data.size(); ++i) dbias[i % dbias.size()] += static_cast<double>(dy.data[i]);
  return {rounded(c.x, dx), rounded(c.w, dw), rounded({c.w[0]}, dbias)};
}

Values as_halves(Values values) {
  for (float& value : values.data) value = f16_to_f32(f32_to_f16(value));
  return values;
}

class GradientProduct : public ::testing::Test {
 protected:
  /// Calls the linear layer's operations where the case is a linear layer.
  Gradients gradients(const Case& c, const Values& dy, const Values& x, const Values& w) {
    const auto weight = cuda_.make_trained_weight(w.view());
    const Buffer<f16> gradient = fp16_on(cuda_, dy), input = fp16_on(cuda_, x);
    const TensorView<const f16> of_y(gradient.data(), dy.shape), of_x(input.data(), x.shape);
    Gradients result;
    result.dx = output_of(cuda_, c.x, [&](TensorView<float> floats) {
      Buffer<f16> fp16 = fp16_on(cuda_, Values(c.x, std::numeric_limits<float>::quiet_NaN()));
      const TensorView<f16> dx(fp16.data(), c.x);
      if (is_linear(c))
        cuda_.linear_backward_data(Activations(dx).reshaped(matrix(c.x)),
                                   ConstActivations(of_y).reshaped(matrix(dy.shape)), *weight);
      else
        cuda_.conv2d_backward_data(dx, of_y, *weight, c.window);
      cuda_.convert(floats, dx);
    });
    result.dw = output_of(cuda_, c.w, [&](TensorView<float> dw) {
      result.dbias = output_of(cuda_, {c.w[0]}, [&](TensorView<float> dbias) {
        if (is_linear(c))
          cuda_.linear_backward_weight({dw.data(), {c.w[0], c.w[1]}}, dbias,
                                       ConstActivations(of_y).reshaped(matrix(dy.shape)),
                                       ConstActivations(of_x).reshaped(matrix(x.shape)));
        else
          cuda_.conv2d_backward_weight(dw, dbias, of_y, of_x, c.window);
      });
    });
    return result;
  }
  static bool is_linear(const Case& c) { return c.x[1] * c.x[2] == 1; }
  static Shape matrix(const Shape& images) { return {images[0], images[3]}; }

  CudaBackend cuda_;
};

TEST_F(GradientProduct, IsExactForIntegers) {
  for (const auto* cases : {&convolutions, &few_channels, &matrices, &odd})
    for (const Case& c : *cases) {
      SCOPED_TRACE(name_of(c));
      const Values dy = integers(output_shape(c), 1, 2), x = integers(c.x, 2, 2), w = integers(c.w, 3, 1);
      const Gradients reference = expected(c, dy, x, w);
      for (const testing::Family family : testing::families()) {
        use(cuda_, family);
        const Gradients actual = gradients(c, dy, x, w);
        EXPECT_EQ(actual.dx, as_halves(reference.dx)) << name_of(family);
        EXPECT_EQ(actual.dw, reference.dw) << name_of(family);
        EXPECT_EQ(actual.dbias, reference.dbias) << name_of(family);
      }
    }
}

TEST_F(GradientProduct, SumsInFloat32) {
  for (const Case& c : {convolutions[1], convolutions[4], convolutions[5], few_channels[0], few_channels[2],
                        matrices[1], matrices[3]}) {
    SCOPED_TRACE(name_of(c));
    const Values dy = as_halves(uniform(output_shape(c), 1)), x = as_halves(uniform(c.x, 2));
    const Values w = as_halves(uniform(c.w, 3));
    const Gradients reference = expected(c, dy, x, w);
    for (const testing::Family family : testing::families()) {
      use(cuda_, family);
      const Gradients actual = gradients(c, dy, x, w);
      EXPECT_LE(relative_error(actual.dx.view(), reference.dx.view()), half_tolerance) << name_of(family);
      EXPECT_LE(relative_error(actual.dw.view(), reference.dw.view()), sum_tolerance) << name_of(family);
      EXPECT_LE(relative_error(actual.dbias.view(), reference.dbias.view()), sum_tolerance) << name_of(family);
    }
  }
}

TEST_F(GradientProduct, OneKernelUnlessTheReductionIsCut) {
  struct Launches {
    Case c;
    int64_t of_data, of_weight;
  };
  use(cuda_, testing::Family::portable);
  const std::vector<Launches> cases = {
      {odd[3], 1, 1}, {matrices[0], 1, 1}, {matrices[3], 2, 1}, {convolutions[1], 2, 1}, {convolutions[4], 1, 2}};
  for (const auto& [c, of_data, of_weight] : cases) {
    SCOPED_TRACE(name_of(c));
    const Values dy = uniform(output_shape(c), 1), x = uniform(c.x, 2), w = uniform(c.w, 3);
    const int64_t before = cuda_.stream().launches();
    gradients(c, dy, x, w);
    // Kernels beside the products: fp16 values of the weight, fp16 values of dx read back.
    EXPECT_EQ(cuda_.stream().launches() - before, of_data + of_weight + 2);
  }
}

TEST_F(GradientProduct, Fp16CopiesOfATrainedWeightFollowItsValues) {
  cuda_.choose_kernels({KernelChoice::Mode::portable});  // wgmma has no superblocks
  const Shape shape = {64, 64, 3, 3};                    // rows and superblocks
  const Window window = {3, 1, 1};
  const Case c{{1, 4, 4, 64}, shape, window};
  const Values x = as_halves(uniform(c.x, 1)), first = as_halves(uniform(shape, 2)),
               second = as_halves(uniform(shape, 3));
  const Buffer<f16> input = fp16_on(cuda_, x);
  const Tensor<float> bias = on(cuda_, Values({64}));
  const auto weight = cuda_.make_trained_weight(first.view());
  EXPECT_EQ(weight->resident().weights, 8 * shape.elements());
  const auto forward = [&](Weight& w) {
    return output_of(cuda_, output_shape(c), [&](TensorView<float> y) {
      cuda_.conv2d_forward(y, TensorView<const f16>(input.data(), c.x), w, bias.view(), window, Epilogue::none);
    });
  };
  EXPECT_EQ(from(cuda_, weight->values()), first);
  EXPECT_TRUE(same_bits(forward(*weight), forward(*cuda_.make_trained_weight(first.view()))));
  cuda_.copy_from_host(weight->values().data(), second.data.data(), second.data.size() * sizeof(float));
  weight->changed();
  EXPECT_TRUE(same_bits(forward(*weight), forward(*cuda_.make_trained_weight(second.view()))));
  const auto inference = cuda_.make_weight(second.view(), Precision::float16);
  EXPECT_LE(relative_error(forward(*weight).view(), forward(*inference).view()), sum_tolerance);
  const Values dy = uniform(output_shape(c), 4);
  const Gradients reference = expected(c, as_halves(dy), x, second), actual = gradients(c, dy, x, second);
  EXPECT_LE(relative_error(actual.dx.view(), reference.dx.view()), half_tolerance);
}

}  // namespace
}  // namespace nibblenet
