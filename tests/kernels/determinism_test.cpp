#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/kernels/schemes.h"

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::dropped;
using testing::float_weight;
using testing::linear;
using testing::on;
using testing::output_of;
using testing::packed_weight;
using testing::quantized;
using testing::same_bits;
using testing::uniform;
using testing::Values;

/// An operation on fixed pseudo-random operands.
struct Operation {
  std::string name;
  std::function<Values(Backend&)> run;
  bool any_threads = false;  ///< the same bits whatever the number of threads, too
};

Values run_linear(Backend& backend, int64_t batch, bool packed) {
  const auto weight = packed ? packed_weight(backend, {300, 2100}) : float_weight(backend, {300, 2100});
  return linear(backend, uniform({batch, 2100}, 2), *weight, uniform({300}, 3), Epilogue::relu);
}

const Shape conv_input = {5, 13, 13, 32}, conv_filters = {40, 32, 3, 3}, conv_output = {5, 13, 13, 40};
constexpr Window conv_window = {3, 1, 1};

Values run_conv(Backend& backend, bool packed) {
  const auto weight = packed ? packed_weight(backend, conv_filters) : float_weight(backend, conv_filters);
  return conv2d(backend, uniform(conv_input, 2), *weight, uniform({40}, 3), conv_window, Epilogue::relu);
}

Values run_conv_backward_data(Backend& backend) {
  const auto weight = float_weight(backend, conv_filters);
  const auto dy = on(backend, uniform(conv_output, 2));
  return output_of(backend, conv_input, [&](TensorView<float> dx) {
    backend.training().conv2d_backward_data(dx, dy.view(), *weight, conv_window);
  });
}

Values run_conv_backward_weight(Backend& backend) {
  const auto x = on(backend, uniform(conv_input, 2));
  const auto dy = on(backend, uniform(conv_output, 3));
  auto dbias = on(backend, Values({40}));
  return output_of(backend, conv_filters, [&](TensorView<float> dw) {
    backend.training().conv2d_backward_weight(dw, dbias.view(), dy.view(), x.view(), conv_window);
  });
}

Values run_linear_backward_data(Backend& backend) {
  const auto weight = float_weight(backend, {300, 517});
  const auto dy = on(backend, uniform({33, 300}, 2));
  return output_of(backend, {33, 517},
                   [&](TensorView<float> dx) { backend.training().linear_backward_data(dx, dy.view(), *weight); });
}

Values run_linear_backward_weight(Backend& backend) {
  const auto x = on(backend, uniform({33, 517}, 2));
  const auto dy = on(backend, uniform({33, 300}, 3));
  auto dbias = on(backend, Values({300}));
  return output_of(backend, {300, 517}, [&](TensorView<float> dw) {
    backend.training().linear_backward_weight(dw, dbias.view(), dy.view(), x.view());
  });
}

Values run_bias_gradient(Backend& backend) {
  const auto x = on(backend, uniform({333, 5}, 2));
  const auto dy = on(backend, uniform({333, 300}, 3));
  auto dw = on(backend, Values({300, 5}));
  return output_of(backend, {300}, [&](TensorView<float> dbias) {
    backend.training().linear_backward_weight(dw.view(), dbias, dy.view(), x.view());
  });
}

Values run_adaptive_backward(Backend& backend) {
  const auto dy = on(backend, uniform({3, 6, 6, 5}, 2));
  return output_of(backend, {3, 13, 9, 5},
                   [&](TensorView<float> dx) { backend.training().adaptive_average_pool2d_backward(dx, dy.view()); });
}

const std::vector<Operation> operations = {
    {"conv2d", [](Backend& b) { return run_conv(b, false); }},
    {"packed conv2d", [](Backend& b) { return run_conv(b, true); }},
    {"conv2d backward data", run_conv_backward_data},
    {"conv2d backward weight", run_conv_backward_weight},
    {"linear, batch 1", [](Backend& b) { return run_linear(b, 1, false); }, true},
    {"linear, batch 40", [](Backend& b) { return run_linear(b, 40, false); }, true},
    {"packed linear, batch 1", [](Backend& b) { return run_linear(b, 1, true); }, true},
    {"packed linear, batch 8", [](Backend& b) { return run_linear(b, 8, true); }, true},
    {"packed linear, batch 40", [](Backend& b) { return run_linear(b, 40, true); }, true},
    {"linear backward data", run_linear_backward_data, true},
    {"linear backward weight", run_linear_backward_weight, true},
    {"linear bias gradient", run_bias_gradient, true},
    {"dropout",
     [](Backend& b) {
       return dropped(b, uniform({7, 1001}, 2), 0.3F, {1, 2, 3});
     },
     true},
    {"adaptive pool backward", run_adaptive_backward, true},
};

TEST(Determinism, TheSameBitsOnEveryRunAndInEveryBackend) {
  const auto backend = make_backend("cpu", 2);
  for (const Operation& operation : operations) {
    const Values first = operation.run(*backend);
    for (int run = 0; run < 5; ++run)
      EXPECT_TRUE(same_bits(operation.run(*backend), first)) << operation.name << ", run " << run;
    EXPECT_TRUE(same_bits(operation.run(*make_backend("cpu", 2)), first)) << operation.name << ", another backend";
  }
}

TEST(Determinism, TheSameBitsForEveryNumberOfThreads) {
  for (const Operation& operation : operations) {
    if (!operation.any_threads) continue;
    const Values one = operation.run(*make_backend("cpu", 1));
    for (const int threads : {2, 3, 8})
      EXPECT_TRUE(same_bits(operation.run(*make_backend("cpu", threads)), one))
          << operation.name << ", " << threads << " threads";
  }
}

}  // namespace
}  // namespace nibblenet
