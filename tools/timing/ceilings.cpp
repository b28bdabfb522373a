#include "tools/timing/ceilings.h"

#include <algorithm>

#include "tools/timing/sampling.h"

namespace nibblenet::tools {
namespace {

Tensor<float> random_on(Backend& backend, const Shape& shape) {
  const std::vector<float> values = random_values(shape.elements(), -1, 1);
  Tensor<float> tensor(backend, shape, MemoryCategory::data);
  backend.copy_from_host(tensor.data(), values.data(), sizeof(float) * values.size());
  return tensor;
}

double best_seconds(Backend& backend, double seconds, const std::string& label, const std::function<void()>& work) {
  const auto once = [&] {
    const Stopwatch watch;
    work();
    backend.synchronize();
    return watch.milliseconds();
  };
  return time_warm(once, seconds, label).p10 / 1000;
}

/// The faster of ReLU, which writes what it reads, and max pooling of 4 x 4 pixels, which hardly writes.
double bytes_per_second(Backend& backend, double seconds) {
  constexpr int64_t side = 64, channels = 64, side_after = side / 4;
  const auto wanted = static_cast<int64_t>(backend.bytes_that_empty_caches() / sizeof(float));
  const int64_t images = std::max<int64_t>(1, wanted / (side * side * channels));
  Tensor<float> x = random_on(backend, {images, side, side, channels});
  Tensor<float> y(backend, {images, side_after, side_after, channels}, MemoryCategory::data);
  const auto bytes = static_cast<double>(x.view().span().size_bytes());
  const double copying = best_seconds(backend, seconds, "bandwidth, read and write",
                                      [&] { backend.relu_forward(x.view(), std::as_const(x).view()); });
  const double reading = best_seconds(backend, seconds, "bandwidth, read", [&] {
    backend.max_pool2d_forward(y.view(), {}, std::as_const(x).view(), {.size = 4, .stride = 4, .padding = 0});
  });
  return std::max(2 * bytes / copying, bytes * (1 + 1.0 / 16) / reading);
}

/// Of a square product, large enough to hide all else.
double operations_per_second(Backend& backend, Precision precision, double seconds) {
  const int64_t n = backend.device_memory() ? 8192 : 1024;
  const Tensor<float> x = random_on(backend, {n, n});
  Tensor<float> y(backend, {n, n}, MemoryCategory::data);
  Tensor<float> bias = random_on(backend, {n});
  Buffer<f16> halves;
  ConstActivations input = x.view();
  if (precision == Precision::float16) {
    halves = {backend, static_cast<size_t>(n * n), MemoryCategory::data};
    const TensorView<f16> view(halves.data(), {n, n});
    backend.convert(view, input);
    input = view;
  }
  const std::vector<float> values = random_values(n * n, -1, 1);
  const auto weight = backend.make_weight(TensorView<const float>(values.data(), {n, n}), precision);
  const double best = best_seconds(backend, seconds, fmt::format("products in {}", to_string(precision)), [&] {
    backend.linear_forward(y.view(), input, *weight, std::as_const(bias).view(), Epilogue::none);
  });
  const auto size = static_cast<double>(n);
  return 2 * size * size * size / best;
}

bool supports_halves(const Backend& backend) {
  try {
    backend.expect_support(Precision::float16);
    return true;
  } catch (const UsageError&) {
    return false;
  }
}

}  // namespace

Ceilings measure_ceilings(Backend& backend, Backend& products, double seconds) {
  Ceilings ceilings{.bytes_per_second = bytes_per_second(backend, seconds),
                    .float32_per_second = operations_per_second(products, Precision::float32, seconds),
                    .float16_per_second = std::nullopt,
                    .products_by = products.description()};
  if (supports_halves(products))
    ceilings.float16_per_second = operations_per_second(products, Precision::float16, seconds);
  return ceilings;
}

nlohmann::json to_json(const Ceilings& ceilings) {
  return {{"gigabytes_per_second", ceilings.bytes_per_second / 1e9},
          {"float32_teraflops", ceilings.float32_per_second / 1e12},
          {"float16_teraflops",
           ceilings.float16_per_second ? nlohmann::json(*ceilings.float16_per_second / 1e12) : nlohmann::json()},
          {"products_by", ceilings.products_by}};
}

}  // namespace nibblenet::tools
