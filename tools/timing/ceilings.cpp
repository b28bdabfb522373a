#include "tools/timing/ceilings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "engine/quant/packed_tensor.h"
#include "tools/timing/sampling.h"

namespace nibblenet::tools {
namespace {

Tensor<float> random_on(Backend& backend, const Shape& shape, float low = -1) {
  const std::vector<float> values = random_values(shape.elements(), low, 1);
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

/// Milliseconds of the shortest of some runs: the first may be slower, and other work interrupts.
double shortest_of_some(Backend& backend, const std::function<void()>& work) {
  constexpr int most = 20;
  constexpr double enough = 200;  // milliseconds
  double shortest = std::numeric_limits<double>::infinity();
  const Stopwatch watch;
  for (int i = 0; i < 2 || (i < most && watch.milliseconds() < enough); ++i)
    shortest = std::min(shortest, milliseconds_of(backend, work));
  return shortest;
}

/// y[n, n] = x[n, n] w[n, n]
class SquareProduct {
 public:
  SquareProduct(Backend& backend, Precision precision, int64_t n)
      : backend_(backend), x_(random_on(backend, {n, n}, 0)), bias_(random_on(backend, {n})) {
    y_ = Tensor<float>(backend, {n, n}, MemoryCategory::data);
    input_ = std::as_const(x_).view();
    if (precision == Precision::float16) {
      fp16_ = {backend, static_cast<size_t>(n * n), MemoryCategory::data};
      const TensorView<f16> view(fp16_.data(), {n, n});
      backend.convert(view, input_);
      input_ = view;
    }
    const std::vector<float> values = random_values(n * n, -1, 1);
    const TensorView<const float> weights(values.data(), {n, n});
    weight_ = precision == Precision::int8
                  ? backend.make_weight(quantize(weights, parse_scheme("linear:4:channel"), "weight"), precision,
                                        {.largest = 1, .is_signed = false})
                  : backend.make_weight(weights, precision);
  }

  /// The type of the factors: another one than asked for where the backend has no such products.
  Precision precision() const { return weight_->product_precision().value_or(input_.precision()); }
  void run() { backend_.linear_forward(y_.view(), input_, *weight_, std::as_const(bias_).view(), Epilogue::none); }

 private:
  Backend& backend_;
  Tensor<float> x_, bias_, y_;
  Buffer<f16> fp16_;
  ConstActivations input_;
  std::unique_ptr<Weight> weight_;
};

/// The rate of a square product that is large enough to hide the cost of a launch; nothing when the
/// backend has no products of this precision.
std::optional<double> operations_per_second(Backend& backend, Precision precision, double seconds) {
  constexpr int64_t smallest = 128, largest = 8192;
  constexpr double long_enough = 5;  // milliseconds
  for (int64_t n = smallest;; n *= 2) {
    SquareProduct product(backend, precision, n);
    if (product.precision() != precision) return std::nullopt;
    const auto work = [&] { product.run(); };
    if (n < largest && shortest_of_some(backend, work) < long_enough) continue;
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

bool supports(const Backend& backend, Precision precision) {
  try {
    backend.expect_support(precision);
    return true;
  } catch (const UsageError&) {
    return false;
  }
}

}  // namespace

Ceilings measure_ceilings(Backend& backend, Backend& products, double seconds) {
  Ceilings ceilings{.bytes_per_second = bytes_per_second(backend, seconds),
                    .per_second = {},
                    .products_by = products.description(),
                    .chains = {}};
  for (const auto& [name, precision] : precisions) {
    if (!supports(products, precision)) continue;
    if (const auto rate = operations_per_second(products, precision, seconds)) ceilings.per_second[precision] = *rate;
  }
  for (const int64_t operations : {1, 8, 11, 24})
    if (const auto time = chain_seconds(backend, operations, seconds)) ceilings.chains.emplace_back(operations, *time);
  return ceilings;
}

std::string to_string(const Ceilings& ceilings) {
  std::string text = fmt::format("{:.1f} GB/s", ceilings.bytes_per_second / 1e9);
  for (const auto& [precision, rate] : ceilings.per_second)
    text += fmt::format(", {:.3f} {} in {}", rate / 1e12, precision == Precision::int8 ? "TOP/s" : "TFLOP/s",
                        to_string(precision));
  return text + ", by " + ceilings.products_by;
}

nlohmann::json to_json(const Ceilings& ceilings) {
  nlohmann::json json = {{"gigabytes_per_second", ceilings.bytes_per_second / 1e9},
                         {"products_by", ceilings.products_by},
                         {"chains", nlohmann::json::array()}};
  for (const auto& [name, precision] : precisions) {
    const auto rate = ceilings.per_second.find(precision);
    json[fmt::format("{}_teraflops", name)] =
        rate == ceilings.per_second.end() ? nlohmann::json() : nlohmann::json(rate->second / 1e12);
  }
  for (const auto& [operations, time] : ceilings.chains)
    json["chains"].push_back({{"operations", operations}, {"ms", 1000 * time}});
  return json;
}

}  // namespace nibblenet::tools
