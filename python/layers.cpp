#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>

#include "engine/core/progress.h"
#include "engine/quant/quantizer.h"
#include "layers/network/network_spec.h"
#include "python/bindings.h"
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
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
template <class T>
using NewArray = nb::ndarray<nb::numpy, T>;

/// The parts of a layer: codes, scales, zero points, block ids, codebook and bias, None for none.
using Parts = std::vector<std::optional<Bytes>>;

LayerBytes bytes_of(const Parts& parts) {
  constexpr size_t count = 6;
  if (parts.size() != count) fail<UsageError>("a packed layer has {} parts, got {}", count, parts.size());
  const auto part = [&](size_t i) -> std::span<const uint8_t> {
    if (!parts[i]) return {};
    return {parts[i]->data(), parts[i]->size()};
  };
  return {part(0), part(1), part(2), part(3), part(4), part(5)};
}

template <class AnyArray>
Shape shape_of(const AnyArray& array) {
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < array.ndim(); ++i) sizes.push_back(static_cast<int64_t>(array.shape(i)));
  return Shape(sizes);
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

/// The parts of a packed weight, and of a bias unless it is empty.
nb::list parts_of(PackedTensor packed, std::span<const float> bias) {
  const auto channels = static_cast<size_t>(packed.shape[0]);
  const auto by_channel = [&](const std::vector<uint8_t>& bytes) {
    return std::vector<size_t>{channels, bytes.size() / channels};
  };
  const bool strings = packed.scheme.is_trellis();
  const std::vector<size_t> codes = strings ? std::vector{packed.codes.size()} : by_channel(packed.codes);
  const std::vector<size_t> block_ids = by_channel(packed.block_ids);
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

}  // namespace

void bind_layers(nb::module_& m) {
  nb::class_<PackedLayer>(m, "PackedLayer")
      .def(nb::init<const std::string&, const std::vector<int64_t>&>(), "scheme"_a, "shape"_a)
      .def(
          "validate",
          [](const PackedLayer& layer, const Parts& parts, const std::string& name) {
            Worker::instance().run([&] { layer.validate(bytes_of(parts), name); });
          },
          "parts"_a.noconvert(), "name"_a)
      .def(
          "linear",
          [](const PackedLayer& layer, const Dense<float, 2>& y, const Dense<const float, 2>& x, const Parts& parts) {
            Worker::instance().run([&] { layer.linear(view_of(y), view_of(x), bytes_of(parts)); });
          },
          "y"_a.noconvert(), "x"_a.noconvert(), "parts"_a.noconvert())
      .def(
          "conv2d",
          [](const PackedLayer& layer, const Dense<float, 4>& y, const Dense<const float, 4>& x, int64_t stride,
             int64_t padding, const Parts& parts) {
            constexpr int64_t most = int64_t{1} << 32;
            if (stride > most || padding > most) fail<ShapeError>("stride {} and padding {}", stride, padding);
            const Window window{layer.shape()[layer.shape().rank() - 1], stride, padding};
            Worker::instance().run([&] { layer.conv2d(view_of(y), view_of(x), window, bytes_of(parts)); });
          },
          "y"_a.noconvert(), "x"_a.noconvert(), "stride"_a, "padding"_a, "parts"_a.noconvert())
      .def(
          "dequantized",
          [](const PackedLayer& layer, const Parts& parts) {
            Tensor<float> values = on_worker([&] { return layer.dequantized(bytes_of(parts)); });
            std::vector<size_t> sizes;
            for (const int64_t size : values.shape().sizes()) sizes.push_back(static_cast<size_t>(size));
            return to_numpy<float>(std::move(values), sizes);
          },
          "parts"_a.noconvert());
  m.def("packed_layers", packed_layers, "model"_a);
  m.def("layer_parts", layer_parts, "model"_a, "name"_a);
  m.def("pack_layer", pack_layer, "weights"_a.noconvert(), "bias"_a.none().noconvert(), "scheme"_a, "name"_a);
  m.def("choose_schemes", choose_schemes, "arguments"_a, "weights"_a);
  m.def("adopted_names", adopted_names, "names"_a);
}

}  // namespace nibblenet::python
