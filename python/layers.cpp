#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "engine/core/progress.h"
#include "engine/quant/quantizer.h"
#include "layers/network/network_spec.h"
#include "python/arrays.h"
#include "python/bindings.h"
#include "python/gpu_layer.h"
#include "python/model.h"
#include "python/packed_layer.h"
#include "python/worker.h"
#include "tools/common/interrupts.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nibblenet::python {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
template <class T, int rank>
using Dense = nb::ndarray<T, nb::ndim<rank>, nb::c_contig, nb::device::cpu>;
template <class T>
using AnyOrder = nb::ndarray<T, nb::ndim<4>, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
template <class T>
using NewArray = nb::ndarray<nb::numpy, T>;
constexpr nb::dlpack::dtype float16{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};

/// The parts of a layer: codes, scales, zero points, block ids, codebook and bias, None for none. A
/// list of arrays becomes them at each call; a caller that keeps them saves that.
struct Parts : std::vector<std::optional<Bytes>> {
  explicit Parts(std::vector<std::optional<Bytes>> arrays) : vector(std::move(arrays)) {}
};
/// The same in a GPU's memory.
using GpuBytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cuda>;
using GpuParts = std::vector<std::optional<GpuBytes>>;
template <int rank>
using GpuArray = nb::ndarray<nb::ndim<rank>, nb::c_contig, nb::device::cuda>;

template <class AnyParts>
LayerBytes bytes_of(const AnyParts& parts) {
  constexpr size_t count = 6;
  if (parts.size() != count) fail<UsageError>("a packed layer has {} parts, got {}", count, parts.size());
  const auto part = [&](size_t i) -> std::span<const uint8_t> {
    if (!parts[i]) return {};
    return {parts[i]->data(), parts[i]->size()};
  };
  return {part(0), part(1), part(2), part(3), part(4), part(5)};
}

template <class T>
auto view_of(const T& array) {
  return TensorView(array.data(), shape_of(array));
}

/// Hands memory to NumPy: that of `owner`, which has data().
template <class T, class Owner>
NewArray<T> to_numpy(Owner made, const std::vector<size_t>& sizes) {
  auto owner = std::make_unique<Owner>(std::move(made));
  auto* data = reinterpret_cast<T*>(owner->data());
  const nb::capsule capsule(owner.release(), [](void* pointer) noexcept { delete static_cast<Owner*>(pointer); });
  return NewArray<T>(data, sizes.size(), sizes.data(), capsule);
}

nb::object bytes_or_none(std::vector<uint8_t> bytes, std::vector<size_t> sizes = {}) {
  if (bytes.empty()) return nb::none();
  if (sizes.empty()) sizes = {bytes.size()};
  return nb::cast(to_numpy<uint8_t>(std::move(bytes), sizes));
}

std::vector<uint8_t> raw(std::span<const float> values) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  return {bytes, bytes + values.size_bytes()};
}

/// The shape of a part that has a row of bytes for each channel.
std::vector<size_t> rows_of(size_t bytes, const Shape& shape) {
  const auto channels = static_cast<size_t>(shape[0]);
  return {channels, bytes / channels};
}
/// Of codes as files have them.
std::vector<size_t> shape_of_codes(const Scheme& scheme, const Shape& shape, size_t bytes) {
  return scheme.is_trellis() ? std::vector{bytes} : rows_of(bytes, shape);
}

/// A view of an array in float32 or float16.
template <class AnyArray>
Activations activations_of(const AnyArray& array) {
  const bool half = array.dtype() == float16;
  if (!half && array.dtype() != nb::dtype<float>()) fail<UsageError>("expected float32 or float16");
  return {array.data(), shape_of(array), half ? Precision::float16 : Precision::float32};
}

/// The caller of a product. Throws UsageError unless all lies on one GPU.
template <class AnyArray>
GpuCaller caller_of(const AnyArray& y, const AnyArray& x, const GpuParts& parts, uintptr_t stream) {
  const auto here = [&](const auto& array) { return array.device_id() == x.device_id(); };
  if (!here(y) || !std::ranges::all_of(parts, [&](const auto& part) { return !part || here(*part); }))
    fail<UsageError>("the input is on cuda:{}, other tensors of the layer on other GPUs", x.device_id());
  return {x.device_id(), stream};
}

/// The parts of a packed weight, and of a bias unless it is empty.
nb::list parts_of(PackedTensor packed, std::span<const float> bias) {
  const std::vector<size_t> codes = shape_of_codes(packed.scheme, packed.shape, packed.codes.size());
  const std::vector<size_t> block_ids = rows_of(packed.block_ids.size(), packed.shape);
  nb::list parts;
  parts.append(bytes_or_none(std::move(packed.codes), codes));
  parts.append(bytes_or_none(std::move(packed.scales)));
  parts.append(bytes_or_none(std::move(packed.zero_points)));
  parts.append(bytes_or_none(std::move(packed.block_ids), block_ids));
  parts.append(bytes_or_none(raw(packed.codebook)));
  parts.append(bytes_or_none(raw(bias)));
  return parts;
}

/// (name, scheme or "" where the weight is not packed, shape, [stride, padding] of a convolution)
/// of each layer.
std::vector<nb::tuple> packed_layers(Model& model) {
  const auto layers = on_worker([&] {
    std::vector<std::pair<LayerSpec, std::string>> found;
    for (const LayerSpec& spec : layers_of(model.dict())) {
      if (!spec.has_parameters()) continue;
      const Parameter& weight = model.dict().at(spec.name + ".weight");
      found.emplace_back(spec, weight.packed() ? to_string(weight.packed_values().scheme) : "");
    }
    return found;
  });
  std::vector<nb::tuple> rows;
  for (const auto& [spec, scheme] : layers) {
    const auto sizes = spec.weight.sizes();
    const std::vector<int64_t> shape(sizes.begin(), sizes.end());
    std::vector<int64_t> window;
    if (spec.kind == LayerKind::conv2d) window = {spec.window.stride, spec.window.padding};
    rows.push_back(nb::make_tuple(spec.name, scheme, shape, window));
  }
  return rows;
}

/// Copies of a layer's parts.
nb::list layer_parts(Model& model, const std::string& name) {
  auto [packed, bias] = on_worker([&] {
    return std::pair(model.parameter(name + ".weight").packed_values(), model.parameter(name + ".bias").dequantized());
  });
  return parts_of(std::move(packed), bias.view().span());
}

/// The parts of a layer of float values, with the codes of nibblenet.pack. Trellis strings of a
/// large layer take minutes, and stop when they are asked to.
nb::list pack_layer(const Floats& weights, const std::optional<Dense<const float, 1>>& bias, const std::string& scheme,
                    const std::string& name) {
  std::span<const float> biases;
  if (bias) biases = {bias->data(), bias->size()};
  for (const float value : biases)
    if (!std::isfinite(value)) fail<FormatError>("{}: the bias holds NaN or infinities", name);
  const auto stop_if_asked = [](int64_t, int64_t) {
    if (tools::interrupted()) throw Interrupted("stopped");
  };
  return parts_of(on_worker([&] {
                    return quantize(view_of(weights), parse_scheme(scheme), name + ".weight",
                                    QuantizeOptions{.on_columns = stop_if_asked});
                  }),
                  biases);
}

/// (layer, codes, block ids or None) of a layer's parts: the layer on a GPU, and what belongs into
/// its memory in place of these two parts.
nb::tuple for_gpu(const PackedLayer& form, const Parts& parts, const std::string& name) {
  auto layer = on_worker([&] { return std::make_unique<GpuLayer>(form, bytes_of(parts), name); });
  std::vector<uint8_t> block_ids = layer->take_block_ids();
  const std::vector<size_t> sizes = rows_of(block_ids.size(), form.shape());
  nb::object codes = bytes_or_none(layer->take_codes());
  return nb::make_tuple(std::move(layer), codes, bytes_or_none(std::move(block_ids), sizes));
}

/// (codes, block ids or None) as files have them.
nb::tuple file_order(const GpuLayer& layer, const Parts& parts) {
  auto order = on_worker([&] { return layer.file_order(bytes_of(parts)); });
  const PackedLayer& form = layer.form();
  const std::vector<size_t> codes = shape_of_codes(form.scheme(), form.shape(), order.codes.size());
  const std::vector<size_t> block_ids = rows_of(order.block_ids.size(), form.shape());
  return nb::make_tuple(bytes_or_none(std::move(order.codes), codes),
                        bytes_or_none(std::move(order.block_ids), block_ids));
}

/// The window of a convolution, of sizes that no kernel's integers overflow with.
Window window_of(const PackedLayer& form, int64_t stride, int64_t padding, int64_t most) {
  if (stride > most || padding > most) fail<ShapeError>("stride {} and padding {}", stride, padding);
  return {form.shape()[form.shape().rank() - 1], stride, padding};
}

}  // namespace

void bind_layers(nb::module_& m) {
  nb::set_implicit_cast_warnings(false);  // what is no list of arrays is a TypeError
  using Arrays = std::vector<std::optional<Bytes>>;
  nb::class_<Parts>(m, "Parts").def(nb::init<Arrays>(), "arrays"_a.noconvert());
  nb::implicitly_convertible<Arrays, Parts>();
  nb::class_<GpuLayer>(m, "GpuLayer")
      .def("file_order", file_order, "parts"_a)
      .def(
          "linear",
          [](GpuLayer& layer, const GpuArray<2>& y, const GpuArray<2>& x, const GpuParts& parts, uintptr_t stream) {
            const GpuCaller caller = caller_of(y, x, parts, stream);
            Worker::instance().run(
                [&] { layer.linear(activations_of(y), activations_of(x), bytes_of(parts), caller); });
          },
          "y"_a.noconvert(), "x"_a.noconvert(), "parts"_a.noconvert(), "stream"_a)
      .def(
          "conv2d",
          [](GpuLayer& layer, const GpuArray<4>& y, const GpuArray<4>& x, int64_t stride, int64_t padding,
             const GpuParts& parts, uintptr_t stream_of_caller) {
            const Window window = window_of(layer.form(), stride, padding, int64_t{1} << 20);
            const GpuCaller caller = caller_of(y, x, parts, stream_of_caller);
            Worker::instance().run(
                [&] { layer.conv2d(activations_of(y), activations_of(x), window, bytes_of(parts), caller); });
          },
          "y"_a.noconvert(), "x"_a.noconvert(), "stride"_a, "padding"_a, "parts"_a.noconvert(), "stream"_a);
  nb::class_<PackedLayer>(m, "PackedLayer")
      .def(nb::init<const std::string&, const std::vector<int64_t>&>(), "scheme"_a, "shape"_a)
      .def(
          "validate",
          [](const PackedLayer& layer, const Parts& parts, const std::string& name) {
            Worker::instance().run([&] { layer.validate(bytes_of(parts), name); });
          },
          "parts"_a, "name"_a)
      .def(
          "linear",
          [](const PackedLayer& layer, const Dense<float, 2>& y, const Dense<const float, 2>& x, const Parts& parts) {
            Worker::instance().run_short([&] { layer.linear(view_of(y), view_of(x), bytes_of(parts)); },
                                         layer.brevity_of(static_cast<int64_t>(y.size())));
          },
          "y"_a.noconvert(), "x"_a.noconvert(), "parts"_a)
      .def(
          "conv2d",
          [](const PackedLayer& layer, const AnyOrder<float>& y, const AnyOrder<const float>& x, int64_t stride,
             int64_t padding, const Parts& parts) {
            const Window window = window_of(layer, stride, padding, int64_t{1} << 32);
            Worker::instance().run_short([&] { layer.conv2d(planes_of(y), planes_of(x), window, bytes_of(parts)); },
                                         layer.brevity_of(static_cast<int64_t>(y.size())));
          },
          "y"_a.noconvert(), "x"_a.noconvert(), "stride"_a, "padding"_a, "parts"_a)
      .def(
          "seconds_of_linear",
          [](const PackedLayer& layer, const Dense<float, 2>& y, const Dense<const float, 2>& x, const Parts& parts,
             int calls, double pause) {
            return seconds_of_calls(calls, pause, [&] { layer.linear(view_of(y), view_of(x), bytes_of(parts)); });
          },
          "y"_a.noconvert(), "x"_a.noconvert(), "parts"_a, "calls"_a, "pause"_a)
      .def(
          "seconds_of_conv2d",
          [](const PackedLayer& layer, const AnyOrder<float>& y, const AnyOrder<const float>& x, int64_t stride,
             int64_t padding, const Parts& parts, int calls, double pause) {
            const Window window = window_of(layer, stride, padding, int64_t{1} << 32);
            return seconds_of_calls(calls, pause,
                                    [&] { layer.conv2d(planes_of(y), planes_of(x), window, bytes_of(parts)); });
          },
          "y"_a.noconvert(), "x"_a.noconvert(), "stride"_a, "padding"_a, "parts"_a, "calls"_a, "pause"_a)
      .def("for_gpu", for_gpu, "parts"_a, "name"_a)
      .def_prop_ro("rotated", &PackedLayer::rotated)
      .def_prop_ro("last_seconds", &PackedLayer::last_seconds)
      .def(
          "dequantized",
          [](const PackedLayer& layer, const Parts& parts) {
            Tensor<float> values = on_worker([&] { return layer.dequantized(bytes_of(parts)); });
            std::vector<size_t> sizes;
            for (const int64_t size : values.shape().sizes()) sizes.push_back(static_cast<size_t>(size));
            return to_numpy<float>(std::move(values), sizes);
          },
          "parts"_a);
  m.attr("has_cuda") = built_with_cuda();
  m.def("packed_layers", packed_layers, "model"_a);
  m.def("layer_parts", layer_parts, "model"_a, "name"_a);
  m.def("pack_layer", pack_layer, "weights"_a.noconvert(), "bias"_a.none().noconvert(), "scheme"_a, "name"_a);
  m.def("choose_schemes", choose_schemes, "arguments"_a, "weights"_a);
  m.def("adopted_names", adopted_names, "names"_a);
}

}  // namespace nibblenet::python
