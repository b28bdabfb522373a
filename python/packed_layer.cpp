#include "python/packed_layer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>

#include "engine/quant/bits.h"
#include "engine/quant/hadamard.h"
#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/weight_cpu.h"
#include "layers/conv2d.h"
#include "layers/linear.h"
#include "layers/network/foreign_names.h"
#include "layers/network/network_spec.h"
#include "python/options.h"
#include "tools/training/scheme_options.h"

namespace nibblenet::python {
namespace {

/// The backend of all layers, made by the worker's first call. It is never destroyed: the worker's
/// thread outlives main.
CpuBackend& shared_backend() {
  static auto* backend = new CpuBackend;
  backend->take_turn();
  return *backend;
}

size_t bytes_of(ScaleType type) { return type == ScaleType::f16 ? 2 : 4; }

void expect_bytes(std::span<const uint8_t> part, int64_t expected, size_t alignment, std::string_view what) {
  if (static_cast<int64_t>(part.size()) != expected)
    fail<ShapeError>("{}: expected {} bytes, got {}", what, expected, part.size());
  if (reinterpret_cast<uintptr_t>(part.data()) % alignment != 0)
    fail<ShapeError>("{}: its memory is not aligned to {} bytes; clone() the tensor", what, alignment);
}

std::vector<float> floats_of(std::span<const uint8_t> bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

/// x, or its channels rotated in `copy` where products with this weight read them so. Requires: x
/// of that many channels.
TensorView<const float> as_read_by(const Weight& weight, Backend& backend, TensorView<const float> x,
                                   Tensor<float>& copy) {
  if (!weight.rotation()) return x;
  copy = Tensor<float>(host_memory(), x.shape(), MemoryCategory::activations);
  backend.hadamard(copy.view(), x, weight.rotation());
  return std::as_const(copy).view();
}

std::vector<uint8_t> vector_of(std::span<const uint8_t> bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

PackedLayer::PackedLayer(const std::string& scheme, const std::vector<int64_t>& shape)
    : scheme_(parse_scheme(scheme)), shape_(shape), groups_(make_group_map(scheme_.granularity, shape_)) {
  expect_rotatable(scheme_, shape_, "a packed layer");
  constexpr int64_t most_weights = int64_t{1} << 48;  // so that no size below overflows
  if (shape_.elements() > most_weights) fail<ShapeError>("a layer of {} weights", to_string(shape_));
  const MethodTraits& traits = traits_of(scheme_.method);
  PackedTensor form{.scheme = scheme_, .shape = shape_};
  if (traits.sorted) form.scales.resize(static_cast<size_t>(groups_.groups) * bytes_of(scheme_.scale));
  block_id_bits_ = form.block_id_bits();
  code_bytes_ = scheme_.is_trellis() ? trellis_layout(form).bytes() : shape_[0] * form.code_stride();
  if (!traits.trained) codebook_ = codebook_of(form);
}

void PackedLayer::expect_sizes(const LayerBytes& bytes, std::optional<int64_t> code_bytes, size_t alignment) const {
  const int64_t inner = shape_.inner_elements();
  const size_t scale_bytes = bytes_of(scheme_.scale);
  const int64_t values = int64_t{1} << scheme_.bits;
  const bool stored = traits_of(scheme_.method).trained || (!bytes.codebook.empty() && !scheme_.is_trellis());
  expect_bytes(bytes.codes, code_bytes.value_or(code_bytes_), alignment, "codes");
  expect_bytes(bytes.scales, groups_.groups * static_cast<int64_t>(scale_bytes), scale_bytes, "scales");
  expect_bytes(bytes.zero_points, scheme_.zero_point ? groups_.groups : 0, 1, "zero points");
  expect_bytes(bytes.block_ids, block_id_bits_ == 0 ? 0 : shape_[0] * channel_stride(inner, block_id_bits_), 1,
               "block ids");
  expect_bytes(bytes.codebook, stored ? values * 4 : 0, std::min(alignment, alignof(float)), "codebook");
  if (!bytes.bias.empty()) expect_bytes(bytes.bias, shape_[0] * 4, alignof(float), "bias");
}

PackedTensor PackedLayer::tensor(const LayerBytes& bytes) const {
  return {.scheme = scheme_,
          .shape = shape_,
          .codes = vector_of(bytes.codes),
          .scales = vector_of(bytes.scales),
          .zero_points = vector_of(bytes.zero_points),
          .block_ids = vector_of(bytes.block_ids),
          .codebook = floats_of(bytes.codebook)};
}

void PackedLayer::validate(const LayerBytes& bytes, const std::string& name) const {
  expect_sizes(bytes);
  nibblenet::validate(tensor(bytes), name);
  for (const float value : floats_of(bytes.bias))
    if (!std::isfinite(value)) fail<FormatError>("{}: the bias holds NaN or infinities", name);
}

/// The products of an output, and what reading a weight takes beside them.
double PackedLayer::amount_of(int64_t outputs) const {
  constexpr double reading = 8;  // products
  return static_cast<double>(outputs) * static_cast<double>(shape_.inner_elements()) +
         reading * static_cast<double>(shape_.elements());
}

/// Calls work(backend, weight, bias) with a weight that views the bytes, for an output of so many
/// elements.
template <class Work>
void PackedLayer::with_weight(const LayerBytes& bytes, int64_t outputs, Work work) const {
  expect_sizes(bytes);
  PackedView view{.bits = scheme_.bits,
                  .channels = shape_[0],
                  .channel_elements = shape_.inner_elements(),
                  .code_stride = scheme_.is_trellis() ? 0 : code_bytes_ / shape_[0],
                  .codes = bytes.codes.data(),
                  .scales = bytes.scales.data(),
                  .scale_type = scheme_.scale,
                  .zero_points = bytes.zero_points.empty() ? nullptr : bytes.zero_points.data(),
                  .block_ids = nullptr,
                  .values = codebook_.values.data(),
                  .scale_to = codebook_.scale_to,
                  .groups = groups_,
                  .trellis_quarters = scheme_.is_trellis() ? scheme_.quarters() : 0,
                  .rotation = rotation_of_inputs(scheme_, shape_)};
  std::vector<uint8_t> scales;  // for ids beyond the groups, which nobody has checked
  if (block_id_bits_ > 0) {
    view.block_ids = bytes.block_ids.data();
    view.block_id_bits = block_id_bits_;
    view.block_id_stride = channel_stride(view.channel_elements, block_id_bits_);
    if (const int64_t ids = int64_t{1} << block_id_bits_; ids > groups_.groups) {
      scales = vector_of(bytes.scales);
      scales.resize(static_cast<size_t>(ids) * bytes_of(scheme_.scale));
      view.scales = scales.data();
    }
  }
  std::array<float, 256> stored{};
  if (!bytes.codebook.empty()) {
    std::memcpy(stored.data(), bytes.codebook.data(), bytes.codebook.size());
    view.values = stored.data();
    view.scale_to = 1.0F;
  }
  PackedWeightCpu weight(shape_, view);
  const std::vector<float> zeros(bytes.bias.empty() ? static_cast<size_t>(shape_[0]) : 0);
  const float* bias = bytes.bias.empty() ? zeros.data() : reinterpret_cast<const float*>(bytes.bias.data());
  try {
    CpuBackend& backend = shared_backend();
    pace_.timed(amount_of(outputs), [&] { work(backend, weight, TensorView<const float>(bias, {shape_[0]})); });
  } catch (const dnnl::error& error) {
    fail<Error>("oneDNN does not compute this layer: {}", error.what());
  }
}

void PackedLayer::linear(TensorView<float> y, TensorView<const float> x, const LayerBytes& bytes) const {
  linear_output_shape(x.shape(), shape_);
  Tensor<float> rotated;
  with_weight(bytes, y.elements(), [&](CpuBackend& backend, Weight& weight, TensorView<const float> bias) {
    linear_forward(backend, y, as_read_by(weight, backend, x, rotated), weight, bias, Epilogue::none);
  });
}

void PackedLayer::conv2d(const Planes<float>& y, const Planes<const float>& x, Window window,
                         const LayerBytes& bytes) const {
  const Shape images{x.shape[0], x.shape[2], x.shape[3], x.shape[1]};
  const Shape output = conv2d_output_shape(images, shape_, window);
  expect_shape({y.shape[0], y.shape[2], y.shape[3], y.shape[1]}, output, "convolution output");
  Tensor<float> x_copy, y_copy, rotated;
  std::optional<TensorView<const float>> pixels = channels_last(x);
  if (!pixels) {
    x_copy = Tensor<float>(host_memory(), images, MemoryCategory::activations);
    gather(x_copy.view(), x);
    pixels = std::as_const(x_copy).view();
  }
  std::optional<TensorView<float>> results = channels_last(y);
  if (!results) {
    y_copy = Tensor<float>(host_memory(), output, MemoryCategory::activations);
    results = y_copy.view();
  }
  with_weight(bytes, output.elements(), [&](CpuBackend& backend, Weight& weight, TensorView<const float> bias) {
    conv2d_forward(backend, *results, as_read_by(weight, backend, *pixels, rotated), weight, bias, window,
                   Epilogue::none);
  });
  if (!y_copy.empty()) scatter(y, *results);
}

Tensor<float> PackedLayer::dequantized(const LayerBytes& bytes) const {
  validate(bytes, "the layer");
  Tensor<float> values(host_memory(), shape_, MemoryCategory::data);
  dequantize(tensor(bytes), values.view());
  return values;
}

std::vector<std::string> choose_schemes(const std::vector<std::string>& arguments,
                                        const std::vector<std::pair<std::string, std::vector<int64_t>>>& weights) {
  CLI::App app("quantize");
  tools::SchemeFlags flags;
  flags.add_to(app);
  parse_options(app, arguments);
  NetworkSpec network;  // its layers, for messages
  std::vector<std::string> names;
  for (const auto& [name, shape] : weights) names.push_back(name.substr(0, name.rfind('.')));
  for (const std::string& name : names) network.layers.push_back({.name = name});
  tools::SchemeChoice choice(flags, false, network, nullptr);
  std::vector<std::string> schemes;
  for (const auto& [name, shape] : weights) {
    const Scheme scheme = choice({.name = name, .value = PackedTensor{.shape = Shape(shape)}});
    nibblenet::validate(scheme);
    schemes.push_back(to_string(scheme));
  }
  choice.expect_all_used();
  return schemes;
}

std::vector<std::pair<std::string, std::string>> adopted_names(const std::vector<std::string>& names) {
  StateDict dict;
  for (const std::string& name : names) dict.parameters.push_back({.name = name, .stored_as = name});
  adopt_names(dict);
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const Parameter& parameter : dict.parameters) pairs.emplace_back(parameter.name, parameter.stored_as);
  return pairs;
}

}  // namespace nibblenet::python
