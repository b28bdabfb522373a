#include <gtest/gtest.h>

#include <map>
#include <memory>

#include "engine/core/fold.h"
#include "engine/io/preprocess.h"
#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "tests/hostexec/fake_runtime.h"
#include "tests/hostexec/scheduler.h"
#include "tests/kernels/values.h"
#include "tests/support/route_table.h"

// The kernels that launchers start, compared with tests/data/routes.txt. Dry mode runs nothing, so
// layers have their real sizes.

namespace nibblenet {
namespace {

using testing::RouteColumn;
using testing::RouteQuestion;

/// The kernel that the table names for a launch; "" for a kernel that only adds up split-K sums. No
/// other list names launches.
std::string kernel_of(const std::string& launch) {
  static const std::map<std::string, std::string> kernels = {{"conv2d_forward", "plain"},
                                                             {"conv2d_backward_data", "plain"},
                                                             {"conv2d_backward_weight", "plain"},
                                                             {"few_rows_linear_forward", "few_rows"},
                                                             {"few_outputs", "few_outputs"},
                                                             {"few_outputs_data_gradient", "few_outputs"},
                                                             {"few_outputs_weight_gradient", "few_outputs"},
                                                             {"few_pixels_conv2d_forward", "few_pixels"},
                                                             {"few_channels", "few_channels"},
                                                             {"few_channels_weight_gradient", "few_channels"},
                                                             {"folded_conv2d", "folded"},
                                                             {"mma_product", "mma"},
                                                             {"data_gradient", "mma"},
                                                             {"weight_gradient", "mma"},
                                                             {"wgmma_forward", "wgmma"},
                                                             {"wgmma_unpacked", "wgmma_unpacked"},
                                                             {"wgmma_data_gradient", "wgmma"},
                                                             {"wgmma_weight_gradient", "wgmma"},
                                                             {"weight_rows", "weight_rows"},
                                                             {"superblock_rows", "superblock_rows"},
                                                             {"weight_superblocks", "weight_superblocks"},
                                                             {"string_rows", "string_rows"},
                                                             {"bias_gradient", ""},
                                                             {"bias_gradient_splits", ""},
                                                             {"conv2d_backward_weight_splits", ""},
                                                             {"data_gradient_splits", ""},
                                                             {"weight_gradient_splits", ""},
                                                             {"wgmma_splits", ""}};
  const auto found = kernels.find(launch);
  if (found == kernels.end()) fail<Error>("a launch that the table does not know: {}", launch);
  return found->second;
}

std::string kernels_launched() {
  std::string names;
  for (const hostexec::Launch& launch : hostexec::take_launches()) {
    constexpr size_t largest_static = 1 << 10;  // of kernels with dynamic shared memory
    EXPECT_LE(launch.shared_bytes + largest_static, hostexec::block_shared_limit()) << launch.name;
    // One that follows itself computes more rows.
    if (const std::string kernel = kernel_of(launch.name); !kernel.empty() && kernel != names)
      names += fmt::format("{}{}", names.empty() ? "" : " ", kernel);
  }
  return names;
}

/// A packed weight of zeros, of which only sizes count.
PackedTensor zeros_of(const Shape& shape, const Scheme& scheme) {
  PackedTensor packed{.scheme = scheme, .shape = shape};
  const auto groups = static_cast<size_t>(make_group_map(scheme.granularity, shape).groups);
  packed.scales.resize(groups * (scheme.scale == ScaleType::f16 ? 2 : 4));
  packed.codes.resize(scheme.is_trellis() ? static_cast<size_t>(trellis_layout(packed).bytes())
                                          : static_cast<size_t>(shape[0] * packed.code_stride()));
  if (scheme.zero_point) packed.zero_points.resize(groups);
  if (traits_of(scheme.method).sorted)
    packed.block_ids.resize(static_cast<size_t>(shape[0] * packed.block_id_stride()));
  if (traits_of(scheme.method).trained) packed.codebook.resize(size_t{1} << scheme.bits);
  return packed;
}

/// Backends of one architecture each, and views of memory that is never touched.
class DryBackends {
 public:
  DryBackends() {
    hostexec::set_memory_limit(size_t{1} << 40);
    hostexec::set_dry(true);
  }
  ~DryBackends() {
    backends_.clear();
    hostexec::set_dry(false);
    hostexec::set_architecture(90);
    hostexec::set_memory_limit(size_t{4} << 30);
  }
  DryBackends(const DryBackends&) = delete;
  DryBackends& operator=(const DryBackends&) = delete;

  CudaBackend& of(int architecture) {
    hostexec::set_architecture(architecture);
    std::unique_ptr<CudaBackend>& backend = backends_[architecture];
    if (backend == nullptr) backend = std::make_unique<CudaBackend>();
    return *backend;
  }

 private:
  std::map<int, std::unique_ptr<CudaBackend>> backends_;
};

void* const nowhere = reinterpret_cast<void*>(uintptr_t{1} << 20);

Activations view(const Shape& shape, Precision precision) { return {nowhere, shape, precision}; }
TensorView<float> floats(const Shape& shape) { return {static_cast<float*>(nowhere), shape}; }

std::unique_ptr<Weight> weight_of(CudaBackend& backend, const Shape& shape, const std::string& scheme) {
  if (scheme != "float16" && scheme != "float32" && scheme != "trained")
    return backend.make_weight(zeros_of(shape, parse_scheme(scheme)));
  const Tensor<float> values(host_memory(), shape, MemoryCategory::data);
  if (scheme == "trained") return backend.make_trained_weight(values.view());
  return backend.make_weight(values.view(), scheme == "float16" ? Precision::float16 : Precision::float32);
}

class Launches {
 public:
  explicit Launches(DryBackends& backends) : backends_(&backends) {}

  std::string operator()(const RouteQuestion& q) {
    CudaBackend& backend = backends_->of(q.architecture);
    if (q.column == RouteColumn::folded) return folded(backend, q);
    Weight& w = weight(backend, q);
    hostexec::take_launches();
    return q.layer.linear() ? linear(backend, w, q) : convolution(backend, w, q);
  }

 private:
  /// Weights take long to make: one serves every architecture that has its layout.
  Weight& weight(CudaBackend& backend, const RouteQuestion& q) {
    const std::string key = q.layer.name + q.scheme + (q.scheme == "trained" ? std::to_string(q.architecture) : "");
    if (key != key_) weight_ = weight_of(backend, q.layer.weight, q.scheme);
    key_ = key;
    return *weight_;
  }

  static std::string folded(CudaBackend& backend, const RouteQuestion& q) {
    const Tensor<float> values(host_memory(), q.layer.weight, MemoryCategory::data);
    const Tensor<float> bias(host_memory(), {q.layer.weight[0]}, MemoryCategory::data);
    static const FoldedConvolution convolution =
        fold_convolution(values.view(), bias.view(), q.layer.window.stride, q.layer.window.padding,
                         make_resample_tables(Preprocess::for_image_size(224), 32, 32));
    const auto conv = backend.make_folded_conv2d(convolution, q.precision);
    hostexec::take_launches();
    const int64_t size = q.layer.outputs();
    conv->run(view({q.batch, size, size, q.layer.weight[0]}, q.precision),
              TensorView<const uint8_t>(static_cast<uint8_t*>(nowhere), {q.batch, 32, 32, 3}), Epilogue::relu);
    return kernels_launched();
  }

  static std::string convolution(CudaBackend& backend, Weight& w, const RouteQuestion& q) {
    const testing::RouteLayer& layer = q.layer;
    const int64_t filters = layer.weight[0], size = layer.outputs();
    const auto x = view({q.batch, layer.size, layer.size, layer.weight[1]}, q.precision);
    const auto y = view({q.batch, size, size, filters}, q.precision);
    const auto bias = floats({filters});
    switch (q.column) {
      case RouteColumn::forward:
        backend.conv2d_forward(y, x, w, bias, layer.window, Epilogue::relu);
        break;
      case RouteColumn::pooled:
        return pooled(backend, w, q, x, bias);
      case RouteColumn::data_gradient:
        backend.conv2d_backward_data(x, y, w, layer.window, {});
        break;
      case RouteColumn::weight_gradient:
        backend.conv2d_backward_weight(floats(layer.weight), bias, y, x, layer.window);
        break;
      case RouteColumn::step:
        if (!backend.fuses_step(y, x, layer.window)) return "-";
        backend.backward_step(trained(w, bias), y, x, layer.window, 1.0F, {});
        break;
      case RouteColumn::folded:
        break;
    }
    return kernels_launched();
  }

  /// Asks as a pass does: first with the flatten where it follows, then without.
  static std::string pooled(CudaBackend& backend, Weight& w, const RouteQuestion& q, ConstActivations x,
                            TensorView<const float> bias) {
    const int64_t filters = q.layer.weight[0], size = testing::route_pool.output(q.layer.outputs());
    const auto asked = [&](const Shape& shape) {
      const Activations y = view(shape, q.precision);
      if (!testing::fuses_pooling(backend, y, x, w, q.layer.window, testing::route_pool)) return false;
      backend.conv2d_max_pool2d_forward(y, x, w, bias, q.layer.window, Epilogue::relu, testing::route_pool);
      return true;
    };
    if (q.layer.flattened && asked({q.batch, filters * size * size})) return kernels_launched() + " flattens";
    return asked({q.batch, size, size, filters}) ? kernels_launched() : "-";
  }

  static std::string linear(CudaBackend& backend, Weight& w, const RouteQuestion& q) {
    const int64_t outputs = q.layer.weight[0];
    const auto x = view({q.batch, q.layer.weight[1]}, q.precision);
    const auto y = view({q.batch, outputs}, q.precision);
    const auto bias = floats({outputs});
    switch (q.column) {
      case RouteColumn::forward:
        backend.linear_forward(q.layer.last() ? view(y.shape(), Precision::float32) : y, x, w, bias, Epilogue::relu);
        break;
      case RouteColumn::data_gradient:
        backend.linear_backward_data(x, y, w, {});
        break;
      case RouteColumn::weight_gradient:
        backend.linear_backward_weight(floats(q.layer.weight), bias, y, x);
        break;
      case RouteColumn::step:
        if (!backend.fuses_step(y, x)) return "-";
        backend.backward_step(trained(w, bias), y, x, {}, 1.0F, {});
        break;
      case RouteColumn::pooled:
      case RouteColumn::folded:
        break;
    }
    return kernels_launched();
  }

  static TrainedLayer trained(Weight& w, TensorView<float> bias) { return {w, bias, floats(w.shape()), bias}; }

  DryBackends* backends_;
  std::string key_;
  std::unique_ptr<Weight> weight_;
};

TEST(Routes, LaunchersStartTheKernelsOfTheTable) {
  DryBackends backends;
  Launches launches(backends);
  testing::expect_routes_of_the_table(std::ref(launches));
}

/// Dynamic shared memory of a product's block with 4-bit weights, batch 1. Convolutions with max
/// pooling if `pool` has a size.
size_t shared_bytes_of(CudaBackend& backend, const Shape& w, Window pool = {.size = 0}) {
  const auto weight = weight_of(backend, w, "linear:4:channel");
  const auto bias = floats({w[0]});
  hostexec::take_launches();
  if (w.rank() == 2)
    backend.linear_forward(view({1, w[0]}, Precision::float16), view({1, w[1]}, Precision::float16), *weight, bias,
                           Epilogue::relu);
  else if (pool.size > 0)
    backend.conv2d_max_pool2d_forward(view({1, pool.output(13), pool.output(13), w[0]}, Precision::float16),
                                      view({1, 13, 13, w[1]}, Precision::float16), *weight, bias, {3, 1, 1},
                                      Epilogue::relu, pool);
  else
    backend.conv2d_forward(view({1, 13, 13, w[0]}, Precision::float16), view({1, 13, 13, w[1]}, Precision::float16),
                           *weight, bias, {3, 1, 1}, Epilogue::relu);
  return hostexec::take_launches().at(0).shared_bytes;
}

TEST(Routes, BlocksOfNeighbouringLayersFitBesideEachOther) {
  constexpr size_t multiprocessor = 228 << 10, of_system = 1 << 10;  // compute capability 9.0; for each block
  DryBackends backends;
  const size_t convolution = shared_bytes_of(backends.of(90), {256, 256, 3, 3});
  const size_t pooled = shared_bytes_of(backends.of(90), {256, 256, 3, 3}, {3, 2, 0});
  const size_t first = shared_bytes_of(backends.of(90), {4096, 9216});
  const size_t second = shared_bytes_of(backends.of(90), {1024, 4096});
  EXPECT_GE(first, 9 * 16384) << "all that a block reads is in flight";
  EXPECT_GT(2 * (first + of_system), multiprocessor) << "one to a multiprocessor: 128 blocks on 132";
  EXPECT_LE(convolution + first + 2 * of_system, multiprocessor);
  EXPECT_GT(pooled, convolution);
  EXPECT_LE(pooled + first + 2 * of_system, multiprocessor);
  EXPECT_LE(first + second + 2 * of_system, multiprocessor);
  EXPECT_LE(shared_bytes_of(backends.of(80), {4096, 9216}), 98 << 10) << "what every GPU has";
}

/// Blocks of a cluster of AlexNet's fourth convolution, which has 5 splits, at batch 1.
unsigned cluster_of(CudaBackend& backend) {
  const auto weight = weight_of(backend, {256, 384, 3, 3}, "linear:4:channel");
  const auto bias = floats({256});
  hostexec::take_launches();
  backend.conv2d_forward(view({1, 13, 13, 256}, Precision::float16), view({1, 13, 13, 384}, Precision::float16),
                         *weight, bias, {3, 1, 1}, Epilogue::relu);
  return hostexec::take_launches().at(0).cluster;
}

TEST(Routes, SplitsFormClustersWhereAllFitAtOnce) {
  DryBackends backends;
  hostexec::set_architecture(90);
  EXPECT_EQ(cluster_of(backends.of(90)), 5U);
  hostexec::set_blocks_in_clusters(119);  // 120 blocks
  EXPECT_EQ(cluster_of(backends.of(90)), 1U);
  hostexec::set_blocks_in_clusters(120);
  EXPECT_EQ(cluster_of(backends.of(90)), 5U);
  hostexec::set_blocks_in_clusters(132);
  KernelChoice without;
  without.clusters = false;
  backends.of(90).choose_kernels(without);
  EXPECT_EQ(cluster_of(backends.of(90)), 1U);
  EXPECT_EQ(cluster_of(backends.of(89)), 1U);
}

}  // namespace
}  // namespace nibblenet
