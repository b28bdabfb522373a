#include "tests/support/baseline.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "layers/network/pass.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"
#include "tests/support/small_network.h"
#include "tests/support/test_backend.h"

// Our CUDA kernels and the CPU backend against cuDNN and cuBLASLt.

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::fp16_on;
using testing::integers;
using testing::linear;
using testing::make_baseline;
using testing::make_test_backend;
using testing::on;
using testing::output_of;
using testing::pack_all;
using testing::quantized;
using testing::random_tensor;
using testing::relative_error;
using testing::small_alexnet;
using testing::uniform;
using testing::Values;

/// Float32 sums in another order; activations and weights rounded to 11 bits on either side.
constexpr double float32_tolerance = 1e-5;
constexpr double float16_tolerance = 2e-3;

constexpr std::array epilogues = {Epilogue::none, Epilogue::relu};

struct Case {
  Shape x;
  Shape w;
  Window window;
  Shape output() const { return {x[0], window.output(x[1]), window.output(x[2]), w[0]}; }
};

const std::vector<Case>& convolutions() {
  static const std::vector<Case> cases = {{{1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 0}},
                                          {{2, 23, 21, 3}, {8, 3, 11, 11}, {11, 4, 2}},
                                          {{3, 5, 5, 16}, {24, 16, 5, 5}, {5, 1, 2}},
                                          {{1, 6, 5, 8}, {16, 8, 3, 3}, {3, 2, 1}},
                                          {{0, 8, 8, 8}, {8, 8, 3, 3}, {3, 1, 1}}};
  return cases;
}

class Baseline : public ::testing::Test {
 protected:
  void SetUp() override {
    if (baseline_ == nullptr) GTEST_SKIP() << "cuDNN or cuBLASLt is not installed";
  }

  Values conv2d_fp16(Backend& backend, const Case& c, const Values& x, Weight& w, const Values& bias,
                     Epilogue epilogue) {
    Buffer<f16> input = fp16_on(backend, x);
    Buffer<f16> output(backend, static_cast<size_t>(c.output().elements()), MemoryCategory::data);
    const Tensor<float> offset = on(backend, bias);
    const TensorView<f16> y(output.data(), c.output());
    backend.conv2d_forward(y, TensorView<f16>(input.data(), x.shape), w, offset.view(), c.window, epilogue);
    return output_of(backend, c.output(), [&](TensorView<float> floats) { backend.convert(floats, y); });
  }

  CpuBackend cpu_{2};
  std::unique_ptr<Backend> ours_ = make_test_backend();
  std::unique_ptr<Backend> baseline_ = make_baseline();
};

TEST_F(Baseline, SaysWhatItIs) {
  EXPECT_EQ(baseline_->name(), "cudnn");
  EXPECT_NE(baseline_->description().find("cuDNN 9."), std::string::npos) << baseline_->description();
}

TEST_F(Baseline, ConvolutionsInBothPrecisions) {
  for (const Case& c : convolutions()) {
    SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
    const Values x = uniform(c.x, 1), w = uniform(c.w, 2), bias = uniform({c.w[0]}, 3);
    for (const Epilogue epilogue : epilogues) {
      const auto in_floats = [&](Backend& backend) {
        return conv2d(backend, x, *backend.make_weight(w.view()), bias, c.window, epilogue);
      };
      const auto in_fp16 = [&](Backend& backend) {
        const auto weight = backend.make_weight(w.view(), Precision::float16);
        return conv2d_fp16(backend, c, x, *weight, bias, epilogue);
      };
      EXPECT_LE(relative_error(in_floats(*baseline_).view(), in_floats(cpu_).view()), float32_tolerance);
      EXPECT_LE(relative_error(in_floats(*ours_).view(), in_floats(*baseline_).view()), float32_tolerance);
      EXPECT_LE(relative_error(in_fp16(*baseline_).view(), in_floats(cpu_).view()), float16_tolerance);
      EXPECT_LE(relative_error(in_fp16(*ours_).view(), in_fp16(*baseline_).view()), float16_tolerance);
    }
  }
}

TEST_F(Baseline, LinearLayersOfPackedWeights) {
  for (const char* scheme : {"linear:4:channel:zero-point", "stable-embedding:5", "nf4:4:block:16:f16"}) {
    const PackedTensor packed = quantized({72, 40}, parse_scheme(scheme), 3);
    const Values bias = uniform({72}, 4);
    for (const int64_t n : {1, 7, 64}) {
      SCOPED_TRACE(fmt::format("{}, batch {}", scheme, n));
      const Values x = uniform({n, 40}, 5);
      const Values expected = linear(cpu_, x, *cpu_.make_weight(packed), bias, Epilogue::relu);
      EXPECT_LE(relative_error(linear(*baseline_, x, *baseline_->make_weight(packed), bias, Epilogue::relu).view(),
                               expected.view()),
                float32_tolerance);
      const auto fp16 = baseline_->make_weight(packed, Precision::float16);
      EXPECT_EQ(fp16->resident().weights, 2 * packed.shape.elements()) << "dequantized, and said so";
      Buffer<f16> input = fp16_on(*baseline_, x);
      const Tensor<float> offset = on(*baseline_, bias);
      const Values y = output_of(*baseline_, expected.shape, [&](TensorView<float> result) {
        baseline_->linear_forward(result, TensorView<f16>(input.data(), x.shape), *fp16, offset.view(), Epilogue::relu);
      });
      EXPECT_LE(relative_error(y.view(), expected.view()), float16_tolerance);
    }
  }
}

TEST_F(Baseline, TinyWeightsKeepTheirPrecisionInFp16) {
  Values w = uniform({8, 40}, 2);
  for (float& value : w.data) value *= 1e-12F;
  const Values x = uniform({3, 40}, 1), bias(Shape{8});
  const auto fp16 = baseline_->make_weight(w.view(), Precision::float16);
  Buffer<f16> input = fp16_on(*baseline_, x);
  const Tensor<float> offset = on(*baseline_, bias);
  const Values y = output_of(*baseline_, {3, 8}, [&](TensorView<float> result) {
    baseline_->linear_forward(result, TensorView<f16>(input.data(), x.shape), *fp16, offset.view(), Epilogue::none);
  });
  EXPECT_LE(relative_error(y.view(), linear(cpu_, x, *cpu_.make_weight(w.view()), bias).view()), float16_tolerance);
}

TEST_F(Baseline, GradientsOfConvolutions) {
  for (const Case& c : convolutions()) {
    SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
    // Whole numbers: exact in sums of any order.
    const Values x = integers(c.x, 1), w = integers(c.w, 2), dy = integers(c.output(), 3);
    const auto gradients = [&](Backend& backend) {
      const Tensor<float> input = on(backend, x), gradient = on(backend, dy);
      const auto weight = backend.make_weight(w.view());
      std::vector<Values> all(3);
      all[0] = output_of(backend, c.w, [&](TensorView<float> dw) {
        all[1] = output_of(backend, {c.w[0]}, [&](TensorView<float> dbias) {
          backend.training().conv2d_backward_weight(dw, dbias, gradient.view(), input.view(), c.window);
        });
      });
      all[2] = output_of(backend, c.x, [&](TensorView<float> dx) {
        backend.training().conv2d_backward_data(dx, gradient.view(), *weight, c.window);
      });
      return all;
    };
    const std::vector<Values> expected = gradients(cpu_);
    EXPECT_EQ(gradients(*baseline_), expected);
    EXPECT_EQ(gradients(*ours_), expected);
  }
}

TEST_F(Baseline, GradientsOfLinearLayers) {
  for (const int64_t n : {0, 1, 7}) {
    SCOPED_TRACE(n);
    const Values x = integers({n, 40}, 1), w = integers({24, 40}, 2), dy = integers({n, 24}, 3);
    const auto gradients = [&](Backend& backend) {
      const Tensor<float> input = on(backend, x), gradient = on(backend, dy);
      const auto weight = backend.make_weight(w.view());
      std::vector<Values> all(3);
      all[0] = output_of(backend, w.shape, [&](TensorView<float> dw) {
        all[1] = output_of(backend, {w.shape[0]}, [&](TensorView<float> dbias) {
          backend.training().linear_backward_weight(dw, dbias, gradient.view(), input.view());
        });
      });
      all[2] = output_of(backend, x.shape, [&](TensorView<float> dx) {
        backend.training().linear_backward_data(dx, gradient.view(), *weight);
      });
      return all;
    };
    const std::vector<Values> expected = gradients(cpu_);
    EXPECT_EQ(gradients(*baseline_), expected);
    EXPECT_EQ(gradients(*ours_), expected);
  }
}

TEST_F(Baseline, MaxPoolsInBothPrecisions) {
  const Window window = {3, 2, 1};
  const Values x = integers({2, 13, 11, 8}, 1, 100);
  const Shape shape = {2, window.output(13), window.output(11), 8};
  const auto pooled = [&](Backend& backend, Precision precision) {
    const Tensor<float> floats = on(backend, x);
    Buffer<f16> fp16 = fp16_on(backend, x);
    return output_of(backend, shape, [&](TensorView<float> y) {
      if (precision == Precision::float32) {
        backend.max_pool2d_forward(y, {}, floats.view(), window);
        return;
      }
      Buffer<f16> result(backend, static_cast<size_t>(shape.elements()), MemoryCategory::data);
      const TensorView<f16> to(result.data(), shape);
      backend.max_pool2d_forward(to, {}, TensorView<f16>(fp16.data(), x.shape), window);
      backend.convert(y, to);
    });
  };
  for (const Precision precision : {Precision::float32, Precision::float16})
    EXPECT_EQ(pooled(*baseline_, precision), pooled(*ours_, precision)) << to_string(precision);
}

TEST_F(Baseline, WeightsThatWereTrainedAreSeen) {
  const Case c = {{1, 5, 5, 8}, {8, 8, 3, 3}, {3, 1, 1}};
  const Values x = integers(c.x, 1), bias(Shape{8});
  const auto weight = baseline_->make_weight(integers(c.w, 2).view());
  conv2d(*baseline_, x, *weight, bias, c.window);
  const Values trained = integers(c.w, 3);
  baseline_->copy_from_host(weight->values().data(), trained.data.data(), trained.data.size() * sizeof(float));
  weight->changed();
  EXPECT_EQ(conv2d(*baseline_, x, *weight, bias, c.window),
            conv2d(cpu_, x, *cpu_.make_weight(trained.view()), bias, c.window));
}

TEST_F(Baseline, ARecordingSeesWeightsThatWereTrained) {
  const Case c = {{1, 5, 5, 8}, {8, 8, 3, 3}, {3, 1, 1}};
  const Values x = integers(c.x, 1), trained = integers(c.w, 3), bias(Shape{8});
  const auto weight = baseline_->make_weight(integers(c.w, 2).view());
  const Tensor<float> input = on(*baseline_, x), offset = on(*baseline_, bias);
  Tensor<float> y = on(*baseline_, Values(c.output()));
  const auto forward = [&] {
    baseline_->conv2d_forward(y.view(), input.view(), *weight, offset.view(), c.window, Epilogue::relu);
  };
  forward();
  const auto recording = baseline_->record(forward);
  ASSERT_NE(recording, nullptr);
  baseline_->copy_from_host(weight->values().data(), trained.data.data(), trained.data.size() * sizeof(float));
  weight->changed();
  recording->replay();
  EXPECT_EQ(testing::from(*baseline_, std::as_const(y).view()),
            conv2d(cpu_, x, *cpu_.make_weight(trained.view()), bias, c.window, Epilogue::relu));
}

TEST_F(Baseline, PassesOverTheSamePlaceAreReplayed) {
  const Shape shape = {2, 67, 67, 3};
  Network expected(cpu_, small_alexnet(6));
  Pass on_cpu(expected, 0, expected.layers().size(), shape, Pass::Mode::inference);
  for (const Precision precision : {Precision::float32, Precision::float16}) {
    Network network(*baseline_, small_alexnet(6), precision);
    Pass pass(network, 0, network.layers().size(), shape, Pass::Mode::inference);
    Tensor<float> input(*baseline_, shape, MemoryCategory::data);
    for (const uint64_t seed : {5, 6, 5, 7}) {
      const Tensor<float> images = random_tensor(shape, seed);
      baseline_->copy_from_host(input.data(), images.data(), images.view().span().size_bytes());
      const Values logits = testing::from(*baseline_, pass.forward(std::as_const(input).view()));
      EXPECT_LE(relative_error(logits.view(), on_cpu.forward(images.view())),
                precision == Precision::float32 ? float32_tolerance : float16_tolerance);
    }
    EXPECT_GE(pass.replayed_operations(), 8) << "products";
  }
}

TEST_F(Baseline, WholeNetworks) {
  const Tensor<float> images = random_tensor({2, 67, 67, 3}, 5);
  const auto logits = [&](Backend& backend, const char* scheme, Precision precision) {
    StateDict dict = small_alexnet(6);
    if (*scheme != '\0') pack_all(dict, parse_scheme(scheme));
    Network network(backend, std::move(dict), precision);
    Pass pass(network, 0, network.layers().size(), images.shape(), Pass::Mode::inference);
    Tensor<float> input(backend, images.shape(), MemoryCategory::data);
    backend.copy_from_host(input.data(), images.data(), images.view().span().size_bytes());
    return testing::from(backend, pass.forward(std::as_const(input).view()));
  };
  for (const char* scheme : {"", "linear:4:channel"}) {
    const Values expected = logits(cpu_, scheme, Precision::float32);
    for (const Precision precision : {Precision::float32, Precision::float16})
      EXPECT_LE(relative_error(logits(*baseline_, scheme, precision).view(), expected.view()),
                precision == Precision::float32 ? float32_tolerance : float16_tolerance)
          << scheme << ' ' << to_string(precision);
  }
}

}  // namespace
}  // namespace nibblenet
