#include <dlfcn.h>
#include <gtest/gtest.h>

#include "kernels/cpu/backend_cpu.h"
#include "tests/kernels/values.h"
#include "tests/support/baseline.h"

// Which of the stand-in's algorithms the baseline chooses. fake_cudnn.cpp says how each one
// behaves.

namespace nibblenet {
namespace {

using testing::fp16_on;
using testing::from;
using testing::integers;
using testing::make_baseline;
using testing::on;
using testing::output_of;
using testing::Values;

constexpr Window window = {3, 1, 1};
constexpr Window window_of_no_graph = {3, 7, 1};
constexpr Window window_of_slow_algorithms = {3, 5, 1};

class BaselineChoice : public ::testing::Test {
 protected:
  int slow_runs() const { return *static_cast<const int*>(dlsym(library_, "fake_cudnn_slow_runs")); }
  int graph_runs() const { return *static_cast<const int*>(dlsym(library_, "fake_cudnn_graph_runs")); }
  int plans() const { return *static_cast<const int*>(dlsym(library_, "fake_cudnn_plans")); }

  /// An operation, its last output, and the output that is expected.
  struct Operation {
    std::function<void()> run;
    std::function<Values()> result;
    Values expected;
  };

  Operation convolution(Window shape) {
    const Values x = integers({1, 5, 5, 8}, 1), w = integers({8, 8, 3, 3}, 2), bias = integers({8}, 3);
    weight_ = baseline_->make_weight(w.view());
    x_ = on(*baseline_, x);
    bias_ = on(*baseline_, bias);
    y_ = on(*baseline_, Values({1, shape.output(5), shape.output(5), 8}));
    return {[this, shape] {
              baseline_->conv2d_forward(y_.view(), std::as_const(x_).view(), *weight_, std::as_const(bias_).view(),
                                        shape, Epilogue::relu);
            },
            [this] { return from(*baseline_, std::as_const(y_).view()); },
            testing::conv2d(cpu_, x, *cpu_.make_weight(w.view()), bias, shape, Epilogue::relu)};
  }

  Operation product() {
    const Values x = integers({3, 16}, 1), w = integers({8, 16}, 2), bias = integers({8}, 3);
    weight_ = baseline_->make_weight(w.view());
    x_ = on(*baseline_, x);
    bias_ = on(*baseline_, bias);
    y_ = on(*baseline_, Values({3, 8}));
    return {[this] {
              baseline_->linear_forward(y_.view(), std::as_const(x_).view(), *weight_, std::as_const(bias_).view(),
                                        Epilogue::relu);
            },
            [this] { return from(*baseline_, std::as_const(y_).view()); },
            testing::linear(cpu_, x, *cpu_.make_weight(w.view()), bias, Epilogue::relu)};
  }

  void forget_result() {
    const Values zeros(y_.shape());
    baseline_->copy_from_host(y_.data(), zeros.data.data(), y_.view().span().size_bytes());
  }

  CpuBackend cpu_{2};
  std::unique_ptr<Backend> baseline_ = make_baseline();
  void* library_ = dlopen(NIBBLENET_FAKE_CUDNN, RTLD_NOW | RTLD_NOLOAD);
  std::unique_ptr<Weight> weight_;
  Tensor<float> x_, bias_, y_;
};

TEST_F(BaselineChoice, IsTheFastestThatAGraphCanHoldAndIsMadeOnce) {
  for (const bool convolves : {true, false}) {
    SCOPED_TRACE(convolves ? "convolution" : "product");
    const int before = slow_runs();
    const Operation operation = convolves ? convolution(window) : product();
    operation.run();
    EXPECT_EQ(operation.result(), operation.expected);
    const int tried = slow_runs();
    EXPECT_GT(tried, before);
    operation.run();
    forget_result();
    const auto recording = baseline_->record(operation.run);
    ASSERT_NE(recording, nullptr) << "the fastest of all refuses graphs";
    EXPECT_EQ(recording->operations(), 1);
    recording->replay();
    EXPECT_EQ(operation.result(), operation.expected);
    EXPECT_EQ(slow_runs(), tried) << "and the next one is slow";
  }
}

TEST_F(BaselineChoice, IsAPlanOfCudnnsGraphsInFloat16WhereThatIsFaster) {
  for (const Epilogue epilogue : {Epilogue::none, Epilogue::relu}) {
    const Shape shape = {2, 11, 6, 8}, result = {2, 3, 2, 5};
    const Values x = integers(shape, 1, 2), w = integers({5, 8, 3, 3}, 2, 2), bias = integers({5}, 3);
    const auto weight = baseline_->make_weight(w.view(), Precision::float16);
    const Buffer<f16> input = fp16_on(*baseline_, x);
    Buffer<f16> output = fp16_on(*baseline_, Values(result));
    const Tensor<float> offset = on(*baseline_, bias);
    const auto run = [&] {
      baseline_->conv2d_forward(TensorView<f16>(output.data(), result), TensorView<const f16>(input.data(), shape),
                                *weight, offset.view(), window_of_slow_algorithms, epilogue);
    };
    const int plans_before = plans();
    run();
    EXPECT_EQ(plans() - plans_before, 8) << "of 40 that are offered: each may take a second";
    const int before = graph_runs(), slow_before = slow_runs();
    run();
    const auto recording = baseline_->record(run);
    ASSERT_NE(recording, nullptr);
    EXPECT_EQ(recording->operations(), 1);
    recording->replay();
    EXPECT_EQ(graph_runs(), before + 2);
    EXPECT_EQ(slow_runs(), slow_before);
    const Values actual = output_of(*baseline_, result, [&](TensorView<float> y) {
      baseline_->convert(y, TensorView<const f16>(output.data(), result));
    });
    EXPECT_EQ(actual, testing::conv2d(cpu_, x, *cpu_.make_weight(w.view()), bias, window_of_slow_algorithms, epilogue));
  }
}

TEST_F(BaselineChoice, StillRunsWhatNoGraphCanHold) {
  const Operation lonely = convolution(window_of_no_graph);
  lonely.run();
  EXPECT_EQ(lonely.result(), lonely.expected);
  EXPECT_EQ(baseline_->record(lonely.run), nullptr);
  forget_result();
  lonely.run();
  EXPECT_EQ(lonely.result(), lonely.expected) << "as before";
  const Operation other = product();
  other.run();
  EXPECT_EQ(baseline_->record(other.run), nullptr) << "it does not try again";
}

TEST_F(BaselineChoice, ARecordingKnowsWhenTheWorkspaceHasMoved) {
  const Operation operation = product();
  operation.run();
  const auto recording = baseline_->record(operation.run);
  ASSERT_NE(recording, nullptr);
  EXPECT_TRUE(recording->current());
  convolution(window).run();  // whose algorithms ask for more
  EXPECT_FALSE(recording->current());
}

}  // namespace
}  // namespace nibblenet
