#include "tools/timing/ceilings.h"

#include <algorithm>
#include <cmath>

#include "tools/timing/sampling.h"

namespace nibblenet::tools {
namespace {

Tensor<float> random_on(Backend& backend, const Shape& shape) {
  const std::vector<float> values = random_values(shape.elements(), -1, 1);
  Tensor<float> tensor(backend, shape, MemoryCategory::data);
  backend.copy_from_host(tensor.data(), values.data(), sizeof(float) * values.size());
  return tensor;
}

double milliseconds_of(Backend& backend, const std::function<void()>& work) {
  const Stopwatch watch;
  work();
  backend.synchronize();
  return watch.milliseconds();
}

double best_seconds(Backend& backend, double seconds, const std::string& label, const std::function<void()>& work) {
  return time_warm([&] { return milliseconds_of(backend, work); }, seconds, label).p10 / 1000;
}

/// The faster of two rates: ReLU, which writes as much as it reads, and max pooling of 4 x 4
/// pixels, which writes a sixteenth.
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

/// y[n, n] = x[n, n] w[n, n]
class SquareProduct {
 public:
  SquareProduct(Backend& backend, Precision precision, int64_t n)
      : backend_(backend), x_(random_on(backend, {n, n})), bias_(random_on(backend, {n})) {
    y_ = Tensor<float>(backend, {n, n}, MemoryCategory::data);
    input_ = std::as_const(x_).view();
    if (precision == Precision::float16) {
      fp16_ = {backend, static_cast<size_t>(n * n), MemoryCategory::data};
      const TensorView<f16> view(fp16_.data(), {n, n});
      backend.convert(view, input_);
      input_ = view;
    }
    const std::vector<float> values = random_values(n * n, -1, 1);
    weight_ = backend.make_weight(TensorView<const float>(values.data(), {n, n}), precision);
  }

  void run() { backend_.linear_forward(y_.view(), input_, *weight_, std::as_const(bias_).view(), Epilogue::none); }

 private:
  Backend& backend_;
  Tensor<float> x_, bias_, y_;
  Buffer<f16> fp16_;
  ConstActivations input_;
  std::unique_ptr<Weight> weight_;
};

/// The rate of a square product that is large enough to hide the cost of a launch.
double operations_per_second(Backend& backend, Precision precision, double seconds) {
  constexpr int64_t smallest = 128, largest = 8192;
  constexpr double long_enough = 5;  // milliseconds
  for (int64_t n = smallest;; n *= 2) {
    SquareProduct product(backend, precision, n);
    const auto work = [&] { product.run(); };
    work();
    backend.synchronize();
    if (n < largest && milliseconds_of(backend, work) < long_enough) continue;
    const double best = best_seconds(backend, seconds, fmt::format("products in {}", to_string(precision)), work);
    return 2 * std::pow(static_cast<double>(n), 3) / best;
  }
}

/// Seconds of a recording of `operations` tiny operations, each of which waits for the one before;
/// nothing when the backend records nothing.
std::optional<double> chain_seconds(Backend& backend, int64_t operations, double seconds) {
  Tensor<float> x = random_on(backend, {1});
  const auto work = [&] {
    for (int64_t i = 0; i < operations; ++i) backend.relu_forward(x.view(), std::as_const(x).view());
  };
  work();
  const auto recording = backend.record(work);
  if (!recording) return std::nullopt;
  return best_seconds(backend, seconds, fmt::format("{} operations of nothing", operations),
                      [&] { recording->replay(); });
}

bool supports_fp16(const Backend& backend) {
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
  if (supports_fp16(products))
    ceilings.float16_per_second = operations_per_second(products, Precision::float16, seconds);
  for (const int64_t operations : {1, 8, 11, 24})
    if (const auto time = chain_seconds(backend, operations, seconds)) ceilings.chains.emplace_back(operations, *time);
  return ceilings;
}

nlohmann::json to_json(const Ceilings& ceilings) {
  nlohmann::json json = {
      {"gigabytes_per_second", ceilings.bytes_per_second / 1e9},
      {"float32_teraflops", ceilings.float32_per_second / 1e12},
      {"float16_teraflops",
       ceilings.float16_per_second ? nlohmann::json(*ceilings.float16_per_second / 1e12) : nlohmann::json()},
      {"products_by", ceilings.products_by},
      {"chains", nlohmann::json::array()}};
  for (const auto& [operations, time] : ceilings.chains)
    json["chains"].push_back({{"operations", operations}, {"ms", 1000 * time}});
  return json;
}

}  // namespace nibblenet::tools
