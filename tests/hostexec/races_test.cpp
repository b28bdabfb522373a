#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/backend_cuda.h"
#include "tests/hostexec/scheduler.h"
#include "tests/kernels/schemes.h"

// Every kernel once, on shapes small enough for ThreadSanitizer and large enough for several
// blocks: the same bits in every schedule, and no race.

namespace nibblenet {
namespace {

using testing::fp16_on;
using testing::from;
using testing::on;
using testing::output_of;
using testing::quantized;
using testing::random_strings;
using testing::same_bits;
using testing::uniform;
using testing::Values;
using Order = hostexec::Schedule::Order;

struct Operation {
  std::string name;
  std::function<Values(CudaBackend&)> run;
};

constexpr Window window = {3, 1, 1};
const Shape image = {1, 9, 8, 8}, filters = {5, 8, 3, 3}, result = {1, 9, 8, 5};

Values product(CudaBackend& backend, Weight& weight, Precision precision) {
  const Tensor<float> x = on(backend, uniform(image, 1));
  const Tensor<float> bias = on(backend, uniform({5}, 2));
  Buffer<f16> fp16(backend, static_cast<size_t>(image.elements()), MemoryCategory::data);
  const TensorView<f16> converted(fp16.data(), image);
  backend.convert(converted, x.view());
  const ConstActivations input =
      precision == Precision::float16 ? ConstActivations(converted) : ConstActivations(x.view());
  return output_of(backend, result, [&](TensorView<float> y) {
    backend.conv2d_forward(y, input, weight, bias.view(), window, Epilogue::relu);
  });
}

/// A linear layer of superblocks: two superblock rows, and split-K over the columns.
Values superblock_product(CudaBackend& backend, const std::string& scheme, int64_t batch) {
  const auto weight = backend.make_weight(quantized({128, 512}, parse_scheme(scheme), 3));
  const Buffer<f16> x = fp16_on(backend, uniform({batch, 512}, 1));
  const Tensor<float> bias = on(backend, uniform({128}, 2));
  return output_of(backend, {batch, 128}, [&](TensorView<float> y) {
    backend.linear_forward(y, TensorView<const f16>(x.data(), {batch, 512}), *weight, bias.view(), Epilogue::relu);
  });
}

/// A linear layer of trellis strings: two sequences, the last one short, and split-K over the
/// columns.
Values string_product(CudaBackend& backend, const std::string& scheme, int64_t batch) {
  const KernelChoice portable = {KernelChoice::Mode::portable}, by_mma = portable.without(Product::few_rows);
  backend.choose_kernels(batch <= 16 ? portable : batch <= 48 ? by_mma : KernelChoice{KernelChoice::Mode::wgmma});
  const auto weight = backend.make_weight(random_strings({320, 512}, parse_scheme(scheme)));
  const Buffer<f16> x = fp16_on(backend, uniform({batch, 512}, 1));
  const Tensor<float> bias = on(backend, uniform({320}, 2));
  return output_of(backend, {batch, 320}, [&](TensorView<float> y) {
    backend.linear_forward(y, TensorView<const f16>(x.data(), {batch, 512}), *weight, bias.view(), Epilogue::relu);
  });
}

/// A convolution of superblocks: two slices, two or three row blocks, split-K, results in
/// fp16.
Values superblock_convolution(CudaBackend& backend, const std::string& scheme, bool few_pixels, bool clusters = true) {
  KernelChoice choice;
  choice.clusters = clusters;
  backend.choose_kernels(few_pixels ? choice : choice.without(Product::few_pixels));
  const Shape x = {1, 4, 5, 128}, w = {192, 128, 3, 3};
  const Scheme parsed = parse_scheme(scheme);
  const auto weight = backend.make_weight(parsed.is_trellis() ? random_strings(w, parsed) : quantized(w, parsed, 3));
  const Buffer<f16> fp16 = fp16_on(backend, uniform(x, 1));
  const Tensor<float> bias = on(backend, uniform({192}, 2));
  Buffer<f16> y(backend, 20 * 192, MemoryCategory::data);
  return output_of(backend, {1, 4, 5, 192}, [&](TensorView<float> floats) {
    const TensorView<f16> rounded(y.data(), floats.shape());
    backend.conv2d_forward(rounded, TensorView<const f16>(fp16.data(), x), *weight, bias.view(), window,
                           Epilogue::relu);
    backend.convert(floats, rounded);
  });
}

/// A convolution of few channels, results in fp16.
Values few_channels(CudaBackend& backend, const std::string& scheme) {
  const Shape x = {1, 9, 8, 2}, y = {1, 9, 8, 20};
  const auto weight = backend.make_weight(quantized({20, 2, 3, 3}, parse_scheme(scheme), 3));
  const Buffer<f16> fp16 = fp16_on(backend, uniform(x, 1));
  const Tensor<float> bias = on(backend, uniform({20}, 2));
  Buffer<f16> y_fp16(backend, static_cast<size_t>(y.elements()), MemoryCategory::data);
  return output_of(backend, y, [&](TensorView<float> floats) {
    const TensorView<f16> rounded(y_fp16.data(), y);
    backend.conv2d_forward(rounded, TensorView<const f16>(fp16.data(), x), *weight, bias.view(), window,
                           Epilogue::relu);
    backend.convert(floats, rounded);
  });
}

/// A convolution of single pixels with max pooling, in one kernel.
Values pooled_convolution(CudaBackend& backend, const Shape& y, const Shape& x, int64_t channels,
                          bool clusters = true) {
  KernelChoice choice;
  choice.clusters = clusters;
  backend.choose_kernels(choice);
  const auto weight = backend.make_weight(quantized({channels, x[3], 1, 1}, parse_scheme("linear:4:channel"), 3));
  const Buffer<f16> fp16 = fp16_on(backend, uniform(x, 1));
  const Tensor<float> bias = on(backend, uniform({channels}, 2));
  Buffer<f16> y_fp16(backend, static_cast<size_t>(y.elements()), MemoryCategory::data);
  return output_of(backend, y, [&](TensorView<float> floats) {
    const TensorView<f16> rounded(y_fp16.data(), y);
    backend.conv2d_max_pool2d_forward(rounded, TensorView<const f16>(fp16.data(), x), *weight, bias.view(), {1, 1, 0},
                                      Epilogue::relu, {3, 2, 0});
    backend.convert(floats, rounded);
  });
}

Values few_outputs(CudaBackend& backend, const std::string& scheme) {
  const auto weight = backend.make_weight(quantized({10, 1032}, parse_scheme(scheme), 3));
  const Buffer<f16> x = fp16_on(backend, uniform({9, 1032}, 1));
  const Tensor<float> bias = on(backend, uniform({10}, 2));
  return output_of(backend, {9, 10}, [&](TensorView<float> y) {
    backend.linear_forward(y, TensorView<const f16>(x.data(), {9, 1032}), *weight, bias.view(), Epilogue::relu);
  });
}

/// Gradients on the tensor cores with split-K of two: dx, or the weight after a fused step.
Values gradients_in_fp16(CudaBackend& backend, bool of_weight) {
  const Shape x = of_weight ? Shape{1, 24, 24, 8} : Shape{1, 4, 5, 8}, y = {1, x[1], x[2], 64};
  const Values start = uniform({64, 8, 3, 3}, 3);
  const auto weight = backend.make_trained_weight(start.view());
  const Buffer<f16> dy_fp16 = fp16_on(backend, uniform(y, 1)), x_fp16 = fp16_on(backend, uniform(x, 2));
  const TensorView<const f16> dy(dy_fp16.data(), y);
  if (of_weight) {
    Tensor<float> bias = on(backend, Values({64})), velocity = on(backend, start), of_bias = on(backend, Values({64}));
    const TrainedLayer layer{*weight, bias.view(), velocity.view(), of_bias.view()};
    backend.backward_step(layer, dy, TensorView<const f16>(x_fp16.data(), x), window, 0.5F, {0.1F, 0.9F, 0.01F});
    return from(backend, weight->values());
  }
  Buffer<f16> dx(backend, x_fp16.size(), MemoryCategory::data);
  return output_of(backend, x, [&](TensorView<float> floats) {
    const TensorView<f16> fp16(dx.data(), x);
    backend.conv2d_backward_data(fp16, dy, *weight, window);
    backend.convert(floats, fp16);
  });
}

/// An operation of one operand and one result in fp16, with the store that it is given where it is
/// a gradient.
template <class Run>
Operation map_fp16(std::string name, const Shape& y, const Shape& x, Run run) {
  return {std::move(name), [=](CudaBackend& backend) {
            const Buffer<f16> input = fp16_on(backend, uniform(x, 1)), mask = fp16_on(backend, uniform(y, 2));
            Buffer<f16> output = fp16_on(backend, Values(y));
            const TensorView<f16> fp16(output.data(), y);
            Tensor<uint32_t> overflow(backend, {1}, MemoryCategory::data);
            run(backend, Activations(fp16), ConstActivations(TensorView<const f16>(input.data(), x)),
                GradientStore{TensorView<const f16>(mask.data(), y), overflow.view()});
            return output_of(backend, y, [&](TensorView<float> out) { backend.convert(out, fp16); });
          }};
}

/// An operation of one operand and one result.
template <class Run>
Operation map(std::string name, const Shape& y, const Shape& x, Run run) {
  return {std::move(name), [=](CudaBackend& backend) {
            const Tensor<float> input = on(backend, uniform(x, 1));
            return output_of(backend, y, [&](TensorView<float> out) { run(backend, out, input.view()); });
          }};
}

std::vector<Operation> operations() {
  using Y = TensorView<float>;
  using X = TensorView<const float>;
  std::vector<Operation> list;
  for (const Precision precision : {Precision::float32, Precision::float16}) {
    list.push_back({fmt::format("conv2d forward, {}", to_string(precision)), [=](CudaBackend& b) {
                      return product(b, *b.make_weight(uniform(filters, 3).view(), precision), precision);
                    }});
    list.push_back({fmt::format("conv2d forward, packed, {}", to_string(precision)), [=](CudaBackend& b) {
                      const PackedTensor packed = quantized(filters, parse_scheme("stable-embedding:3"), 3);
                      return product(b, *b.make_weight(packed), precision);
                    }});
  }
  for (const std::string scheme : {"linear:3:channel", "linear:4:block:64:zero-point", "nf4:4:block:64"})
    for (const int64_t batch : {3, 9, 33})
      list.push_back({fmt::format("linear forward, {}, batch {}", scheme, batch),
                      [=](CudaBackend& b) { return superblock_product(b, scheme, batch); }});
  for (const std::string scheme : {"trellis:0.75", "trellis:2"})
    for (const int64_t batch : {2, 3, 16, 33, 49})
      list.push_back({fmt::format("linear forward, {}, batch {}", scheme, batch),
                      [=](CudaBackend& b) { return string_product(b, scheme, batch); }});
  for (const std::string scheme :
       {"linear:3:channel:zero-point", "nf4:4:channel", "linear:4:block:64", "trellis:0.75", "trellis:2"})
    for (const bool few_pixels : {false, true})
      list.push_back({fmt::format("conv2d forward, {}{}", scheme, few_pixels ? ", few pixels" : ""),
                      [=](CudaBackend& b) { return superblock_convolution(b, scheme, few_pixels); }});
  list.push_back({"conv2d forward, linear:4:channel, few pixels, semaphores",
                  [](CudaBackend& b) { return superblock_convolution(b, "linear:4:channel", true, false); }});
  for (const std::string scheme : {"linear:3:channel:zero-point", "nf4:4:block:7"}) {
    list.push_back(
        {fmt::format("first convolution, {}", scheme), [=](CudaBackend& b) { return few_channels(b, scheme); }});
    list.push_back({fmt::format("few outputs, {}", scheme), [=](CudaBackend& b) { return few_outputs(b, scheme); }});
  }
  list.push_back({"first convolution with pooling", [](CudaBackend& b) {  // filters for several bands of a block
                    return pooled_convolution(b, {1, 2, 14, 2128}, {1, 5, 29, 2}, 2128);
                  }});
  list.push_back({"few pixels with pooling", [](CudaBackend& b) {
                    return pooled_convolution(b, {2, 3, 4, 64}, {2, 7, 9, 64}, 64);
                  }});
  for (const bool clusters : {false, true})
    list.push_back(
        {fmt::format("few pixels with pooling, {}, flat", clusters ? "clusters" : "semaphores"), [=](CudaBackend& b) {
           return pooled_convolution(b, {1, 1152}, {1, 7, 9, 1024}, 96, clusters);
         }});
  list.push_back(map("conv2d backward data", image, result, [](CudaBackend& b, Y dx, X dy) {
    b.conv2d_backward_data(dx, dy, *b.make_weight(uniform(filters, 3).view()), window);
  }));
  list.push_back(map("conv2d backward weight", {5, 2, 1, 1}, {2, 31, 29, 5}, [](CudaBackend& b, Y dw, X dy) {
    const Tensor<float> x = on(b, uniform({2, 31, 29, 2}, 4));
    Tensor<float> dbias = on(b, Values({5}));
    b.conv2d_backward_weight(dw, dbias.view(), dy, x.view(), {1, 1, 0});
  }));
  for (const bool of_weight : {false, true})
    list.push_back({of_weight ? "step in fp16" : "data gradient in fp16",
                    [=](CudaBackend& b) { return gradients_in_fp16(b, of_weight); }});
  list.push_back(map("find overflow", {7, 91}, {7, 91}, [](CudaBackend& b, Y y, X x) {
    Tensor<uint32_t> found(b, {1}, MemoryCategory::data);
    b.find_overflow(found.view(), x);
    b.convert(y, x, 2.0F);
  }));
  list.push_back(map("relu", {7, 91}, {7, 91}, [](CudaBackend& b, Y y, X x) { b.relu_forward(y, x); }));
  list.push_back(map("relu backward", {7, 91}, {7, 91}, [](CudaBackend& b, Y y, X x) { b.relu_backward(y, x, x); }));
  list.push_back(map("dropout", {7, 91}, {7, 91}, [](CudaBackend& b, Y y, X x) { b.dropout(y, x, 0.4F, {1, 2, 3}); }));
  list.push_back(map("max pool", {2, 4, 3, 5}, {2, 9, 8, 5}, [](CudaBackend& b, Y y, X x) {
    b.max_pool2d_forward(y, {}, x, {3, 2, 0});
  }));
  list.push_back(map("max pool backward", {2, 9, 8, 5}, {2, 4, 3, 5}, [](CudaBackend& b, Y dx, X dy) {
    Tensor<uint8_t> argmax(b, dy.shape(), MemoryCategory::data);
    const std::vector<uint8_t> positions(static_cast<size_t>(dy.elements()), 4);
    b.copy_from_host(argmax.data(), positions.data(), positions.size());
    b.max_pool2d_backward(dx, dy, argmax.view(), {3, 2, 0});
  }));
  using Fp16 = ConstActivations;
  list.push_back(map_fp16("max pool of fp16", {2, 4, 5, 8}, {2, 9, 12, 8},
                          [](CudaBackend& b, Activations y, Fp16 x, const GradientStore&) {
                            Tensor<uint8_t> argmax(b, y.shape(), MemoryCategory::data);
                            b.max_pool2d_forward(y, argmax.view(), x, {3, 2, 0});
                          }));
  list.push_back(map_fp16("max pool backward of fp16", {2, 9, 12, 24}, {2, 4, 5, 24},
                          [](CudaBackend& b, Activations dx, Fp16 dy, const GradientStore& store) {
                            Tensor<uint8_t> argmax(b, dy.shape(), MemoryCategory::data);
                            const std::vector<uint8_t> positions(static_cast<size_t>(dy.elements()), 4);
                            b.copy_from_host(argmax.data(), positions.data(), positions.size());
                            b.max_pool2d_backward(dx, dy, argmax.view(), {3, 2, 0}, store);
                          }));
  list.push_back(map_fp16("dropout of fp16", {7, 336}, {7, 336},
                          [](CudaBackend& b, Activations y, Fp16 x, const GradientStore& store) {
                            b.dropout(y, x, 0.4F, {1, 2, 3}, store);
                          }));
  list.push_back(map_fp16("data gradient of few outputs", {35, 72}, {35, 10},
                          [](CudaBackend& b, Activations dx, Fp16 dy, const GradientStore& store) {
                            b.linear_backward_data(dx, dy, *b.make_trained_weight(uniform({10, 72}, 3).view()), store);
                          }));
  list.push_back({"weight gradient of few outputs", [](CudaBackend& b) {
                    const Buffer<f16> dy = fp16_on(b, uniform({67, 10}, 1)), x = fp16_on(b, uniform({67, 72}, 2));
                    Tensor<float> dbias = on(b, Values({10}));
                    return output_of(b, {10, 72}, [&](TensorView<float> dw) {
                      b.linear_backward_weight(dw, dbias.view(), TensorView<const f16>(dy.data(), {67, 10}),
                                               TensorView<const f16>(x.data(), {67, 72}));
                    });
                  }});
  list.push_back({"weight gradient of few channels", [](CudaBackend& b) {
                    const Shape of_y = {1, 9, 12, 8}, of_x = {1, 9, 12, 2};
                    const Buffer<f16> dy = fp16_on(b, uniform(of_y, 1)), x = fp16_on(b, uniform(of_x, 2));
                    Tensor<float> dbias = on(b, Values({8}));
                    return output_of(b, {8, 2, 3, 3}, [&](TensorView<float> dw) {
                      b.conv2d_backward_weight(dw, dbias.view(), TensorView<const f16>(dy.data(), of_y),
                                               TensorView<const f16>(x.data(), of_x), window);
                    });
                  }});
  list.push_back(map("average pool", {2, 4, 3, 5}, {2, 9, 8, 5},
                     [](CudaBackend& b, Y y, X x) { b.adaptive_average_pool2d_forward(y, x); }));
  list.push_back(map("average pool backward", {2, 9, 8, 5}, {2, 4, 3, 5},
                     [](CudaBackend& b, Y dx, X dy) { b.adaptive_average_pool2d_backward(dx, dy); }));
  list.push_back(map("flatten", {2, 360}, {2, 9, 8, 5}, [](CudaBackend& b, Y y, X x) { b.flatten_forward(y, x); }));
  list.push_back(
      map("flatten backward", {2, 9, 8, 5}, {2, 360}, [](CudaBackend& b, Y y, X x) { b.flatten_backward(y, x); }));
  list.push_back(map("gather rows", {3, 91}, {7, 91}, [](CudaBackend& b, Y y, X x) {
    const std::vector<int64_t> rows = {6, 0, 6};
    b.gather_rows(y, x, rows);
  }));
  list.push_back(map("cross entropy", {7, 41}, {7, 41}, [](CudaBackend& b, Y dlogits, X logits) {
    Tensor<float> losses(b, {7}, MemoryCategory::data);
    Tensor<int32_t> labels(b, {7}, MemoryCategory::data);
    const std::vector<int32_t> classes = {0, 40, 7, 7, 31, 32, 1};
    b.copy_from_host(labels.data(), classes.data(), classes.size() * sizeof(int32_t));
    b.cross_entropy(losses.view(), dlogits, logits, labels.view(), 0.5F);
  }));
  list.push_back(map("soft cross entropy", {7, 41}, {7, 41}, [](CudaBackend& b, Y dlogits, X logits) {
    Tensor<float> losses(b, {7}, MemoryCategory::data);
    b.soft_cross_entropy(losses.view(), dlogits, logits, logits, 0.5F);
  }));
  list.push_back(map("sgd", {7, 91}, {7, 91}, [](CudaBackend& b, Y w, X dw) {
    const Values start = uniform({7, 91}, 5);
    b.copy_from_host(w.data(), start.data.data(), start.data.size() * sizeof(float));
    Tensor<float> velocity = on(b, uniform({7, 91}, 6));
    b.sgd_step(w, velocity.view(), dw, {0.1F, 0.9F, 0.01F});
  }));
  return list;
}

TEST(Races, TheSameBitsInEverySchedule) {
  CudaBackend backend;
  for (const Operation& operation : operations()) {
    SCOPED_TRACE(operation.name);
    hostexec::set_schedule({});
    const Values expected = operation.run(backend);
    for (const Order order : {Order::reverse, Order::random}) {
      hostexec::set_schedule({order, 3, order == Order::random});
      EXPECT_TRUE(same_bits(operation.run(backend), expected));
    }
  }
  hostexec::set_schedule({});
}

}  // namespace
}  // namespace nibblenet
