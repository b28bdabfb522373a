#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>

#include "engine/quant/value_check.h"
#include "python/arrays.h"
#include "python/bindings.h"
#include "python/model.h"
#include "python/worker.h"
#include "tools/common/data_search.h"
#include "tools/common/inspection.h"
#include "tools/common/interrupts.h"
#include "tools/common/model_search.h"
#include "tools/common/progress.h"
#include "tools/common/report.h"
#include "tools/common/version.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nibblenet::python {
namespace {

template <class T, int rank>
using Array = nb::ndarray<const T, nb::ndim<rank>, nb::c_contig, nb::device::cpu>;
template <class T, int rank>
using GpuArray = nb::ndarray<T, nb::ndim<rank>, nb::c_contig, nb::device::cuda>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using NewFloats = nb::ndarray<nb::numpy, float>;

template <class T, class AnyArray>
TensorView<const T> view_of(const AnyArray& array) {
  return {array.data(), shape_of(array)};
}

/// Images as Model::logits() takes them: RGB bytes in C order, or prepared ones of any strides.
using Bytes4 = Array<uint8_t, 4>;
using Floats4 = nb::ndarray<const float, nb::ndim<4>, nb::device::cpu>;

TensorView<const uint8_t> images_of(const Bytes4& array) { return view_of<uint8_t>(array); }
Planes<const float> images_of(const Floats4& array) { return planes_of(array); }

/// Hands a tensor's memory to NumPy.
NewFloats to_numpy(Tensor<float> tensor) {
  auto owner = std::make_unique<Tensor<float>>(std::move(tensor));
  std::vector<size_t> sizes;
  for (const int64_t size : owner->shape().sizes()) sizes.push_back(static_cast<size_t>(size));
  float* data = owner->data();
  const nb::capsule capsule(owner.release(),
                            [](void* pointer) noexcept { delete static_cast<Tensor<float>*>(pointer); });
  return NewFloats(data, sizes.size(), sizes.data(), capsule);
}

std::string to_text(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Reading reading(const std::string& key, bool strict) {
  Reading options = strict ? Checksums::strict : Checksums::warn;
  options.key = key;
  return options;
}

using NamedFloats = std::vector<std::pair<std::string, Floats>>;

std::unique_ptr<Model> model_of(const NamedFloats& arrays, const std::string& device, int threads,
                                const std::string& precision) {
  return on_worker([&] {
    StateDict dict;
    for (const auto& [name, array] : arrays) {
      Tensor<float> values(host_memory(), shape_of(array), MemoryCategory::weights);
      std::copy_n(array.data(), values.elements(), values.data());
      dict.parameters.push_back({.name = name, .value = std::move(values)});
    }
    return std::make_unique<Model>(std::move(dict), "state dict",
                                   tools::DeviceOptions{.device = device, .threads = threads, .precision = precision});
  });
}

std::unique_ptr<Model> load(const std::filesystem::path& path, const std::string& key, bool strict,
                            const std::string& device, int threads, const std::string& precision) {
  return on_worker([&] {
    return Model::load(path, reading(key, strict), {.device = device, .threads = threads, .precision = precision});
  });
}

template <class Array>
NewFloats logits(Model& model, const Array& array, int64_t batch) {
  const auto images = images_of(array);
  return to_numpy(briefly(model.brevity_of(images), [&] { return model.logits(images, batch); }));
}

/// Model::logits_on_gpu() with arrays by DLPack. `stream` is the caller's, which orders the work:
/// whoever hands the arrays over need not wait. One function for both types: a capsule can be taken
/// once, which the first of two overloads would do.
void logits_on_gpu(Model& model, const GpuArray<float, 2>& y, const GpuArray<nb::ro, 4>& images, int64_t batch,
                   uintptr_t stream) {
  if (y.device_id() != images.device_id())
    fail<UsageError>("images are on cuda:{}, their logits on cuda:{}", images.device_id(), y.device_id());
  const bool bytes = images.dtype() == nb::dtype<uint8_t>();
  if (!bytes && images.dtype() != nb::dtype<float>()) fail<UsageError>("images: expected uint8 or float32");
  const TensorView<float> to(y.data(), shape_of(y));
  const GpuCaller caller{images.device_id(), stream};
  Worker::instance().run([&] {
    if (bytes)
      model.logits_on_gpu(to, {static_cast<const uint8_t*>(images.data()), shape_of(images)}, batch, caller);
    else
      model.logits_on_gpu(to, {static_cast<const float*>(images.data()), shape_of(images)}, batch, caller);
  });
}

/// Seconds of calls of Model::logits(), without Python.
template <class Array>
std::vector<double> seconds_of_logits(Model& model, const Array& array, int calls, double pause) {
  const auto images = images_of(array);
  return seconds_of_calls(calls, pause, [&] { model.logits(images, 128); });
}

/// Images, and what Model::evaluate() takes as `asked_for`.
using Images = std::pair<Dataset, std::optional<bool>>;

/// (JSON, logits, labels) of an evaluation.
nb::tuple evaluate(Model& model, const std::function<Images()>& load, int64_t batch, int image_size, bool fold_first,
                   const nb::object& progress) {
  nlohmann::json data;
  Evaluation result = on_worker(
      [&] {
        auto [dataset, asked_for] = load();
        data = {{"description", dataset.description}, {"stand_in", dataset.stand_in()}};
        return model.evaluate(dataset, batch, image_size, asked_for, fold_first);
      },
      progress);
  const tools::Interval interval = tools::wilson_interval(result.correct, result.images);
  const nlohmann::json json = {{"images", result.images},       {"correct", result.correct},
                               {"accuracy", result.accuracy()}, {"accuracy_interval", {interval.low, interval.high}},
                               {"loss", result.loss},           {"seconds", result.seconds},
                               {"data", data["description"]},   {"stand_in", data["stand_in"]}};
  return nb::make_tuple(to_text(json), to_numpy(std::move(result.logits)), result.labels);
}

nb::tuple evaluate_path(Model& model, const std::filesystem::path& path, const std::string& split, int64_t limit,
                        bool skip_unreadable, int64_t batch, int image_size, bool fold_first,
                        const nb::object& progress) {
  const Split part = parse_split(split);
  const auto load = [&]() -> Images {
    const Unreadable unreadable = skip_unreadable ? Unreadable::skip : Unreadable::refuse;
    if (path.empty()) {  // as the tools without --data
      tools::DataSource source = tools::find_data("", unreadable);
      Dataset data = source.load(part, limit);
      return {std::move(data), source.asked_for()};
    }
    Dataset data = load_dataset(path, part, limit, unreadable);
    tools::print_skipped(data);
    return {std::move(data), true};
  };
  return evaluate(model, load, batch, image_size, fold_first, progress);
}

nb::tuple evaluate_arrays(Model& model, const Array<uint8_t, 4>& images, const Array<int64_t, 1>& labels, int64_t batch,
                          int image_size, bool fold_first, const nb::object& progress) {
  const auto load = [&]() -> Images {
    const TensorView<const uint8_t> pixels = view_of<uint8_t>(images);
    if (pixels.size(3) != 3 || pixels.size(1) < 1 || pixels.size(2) < 1)
      fail<ShapeError>("expected images [N, height, width, 3], got {}", to_string(pixels.shape()));
    if (pixels.size(1) > Preprocess::max_size || pixels.size(2) > Preprocess::max_size)
      fail<ShapeError>("images of more than {} pixels a side", Preprocess::max_size);
    if (static_cast<int64_t>(labels.size()) != pixels.size(0))
      fail<ShapeError>("{} images but {} labels", pixels.size(0), labels.size());
    Dataset data;
    data.description = "arrays";
    data.pixels.assign(pixels.begin(), pixels.end());
    const auto bytes = static_cast<size_t>(pixels.shape().inner_elements());
    for (size_t i = 0; i < labels.size(); ++i) {
      const int64_t label = labels.data()[i];
      if (label < 0 || label > 255) fail<UsageError>("label {} of image {} is none of 0 to 255", label, i);
      data.labels.push_back(static_cast<uint8_t>(label));
      data.images.push_back({static_cast<int>(pixels.size(2)), static_cast<int>(pixels.size(1)), i * bytes});
    }
    return {std::move(data), std::nullopt};
  };
  return evaluate(model, load, batch, image_size, fold_first, progress);
}

nlohmann::json to_json(const ValueTables& tables) {
  return {{"groups", tables.groups}, {"values", tables.most}, {"bits", tables.bits}, {"bytes", tables.bytes}};
}

std::string check(const Floats& weights, const std::string& name, const nb::object& progress) {
  const ValueCheck found = on_worker(
      [&] {
        tools::Progress shown("checking " + name, "weights");
        return check_values(view_of<float>(weights), name,
                            [&](int64_t done, int64_t total) { shown.update_or_stop(done, total); });
      },
      progress);
  nlohmann::json json = {{"name", name},
                         {"weights", found.weights},
                         {"tensor", to_json(found.tensor)},
                         {"channel", to_json(found.channel)},
                         {"row", to_json(found.row)},
                         {"scheme", nullptr},
                         {"scheme_bytes", nullptr},
                         {"bytes", found.bytes()},
                         {"stored_as", found.stored_as()}};
  if (found.scheme) {
    json["scheme"] = to_string(*found.scheme);
    json["scheme_bytes"] = found.scheme_bytes;
  }
  return to_text(json);
}

/// Errors of bad arguments are ValueError, of the system OSError, all others nibblenet.Error.
void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const UsageError& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const ShapeError& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const IoError& error) {
    PyErr_SetString(PyExc_OSError, error.what());
  }
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "What nibblenet's Python functions are made of.";
  nb::exception<Error>(m, "Error");
  nb::register_exception_translator(translate);

  nb::class_<Model>(m, "Model")
      .def_static("load", load, "path"_a, "key"_a, "strict"_a, "device"_a, "threads"_a, "precision"_a)
      .def_static("of_arrays", model_of, "arrays"_a, "device"_a, "threads"_a, "precision"_a)
      .def("float_copy", [](Model& model) { return on_worker([&] { return model.float_copy(); }); })
      .def(
          "pack",
          [](Model& model, const std::vector<std::string>& arguments, const nb::object& progress) {
            return to_text(on_worker([&] { return model.pack(arguments); }, progress));
          },
          "arguments"_a, "progress"_a.none())
      .def(
          "simulate",
          [](Model& model, const std::string& scheme, const std::string& repair, const nb::object& progress) {
            return to_text(on_worker([&] { return model.simulate(scheme, repair); }, progress));
          },
          "scheme"_a, "repair"_a, "progress"_a.none())
      .def(
          "save",
          [](Model& model, const std::filesystem::path& path, std::optional<bool> compress,
             const nb::object& progress) { Worker::instance().run([&] { model.save(path, compress); }, progress); },
          "path"_a, "compress"_a.none(), "progress"_a.none())
      .def("size", [](Model& model) { return to_text(on_worker([&] { return model.size(); })); })
      .def("precision", [](Model& model) { return to_text(on_worker([&] { return model.precision(); })); })
      .def("description", [](Model& model) { return to_text(on_worker([&] { return model.description(); })); })
      .def("dequantized",
           [](Model& model) {
             auto values = on_worker([&] {
               std::vector<std::pair<std::string, Tensor<float>>> named;
               for (const Parameter& parameter : model.dict().parameters)
                 named.emplace_back(parameter.name, model.parameter(parameter.name).dequantized());
               return named;
             });
             nb::dict arrays;
             for (auto& [name, tensor] : values) arrays[name.c_str()] = to_numpy(std::move(tensor));
             return arrays;
           })
      .def("logits", logits<Bytes4>, "images"_a.noconvert(), "batch"_a)
      .def("logits", logits<Floats4>, "images"_a.noconvert(), "batch"_a)
      .def("logits_on_gpu", logits_on_gpu, "y"_a.noconvert(), "images"_a.noconvert(), "batch"_a, "stream"_a)
      .def(
          "classes_on", [](Model& model, int gpu) { return on_worker([&] { return model.classes_on(gpu); }); }, "gpu"_a)
      .def("seconds_of_logits", seconds_of_logits<Bytes4>, "images"_a.noconvert(), "calls"_a, "pause"_a)
      .def("seconds_of_logits", seconds_of_logits<Floats4>, "images"_a.noconvert(), "calls"_a, "pause"_a)
      .def_prop_ro("last_seconds", &Model::last_seconds)
      .def("evaluate_path", evaluate_path, "path"_a, "split"_a, "limit"_a, "skip_unreadable"_a, "batch"_a,
           "image_size"_a, "fold_first"_a, "progress"_a.none())
      .def("evaluate_arrays", evaluate_arrays, "images"_a.noconvert(), "labels"_a.noconvert(), "batch"_a,
           "image_size"_a, "fold_first"_a, "progress"_a.none())
      .def("close", [](Model& model) { Worker::instance().run([&] { model.close(); }); });

  m.def("check", check, "weights"_a.noconvert(), "name"_a, "progress"_a.none());
  m.def(
      "inspect",
      [](const std::filesystem::path& path, const std::string& key, bool strict) {
        return to_text(
            on_worker([&] { return tools::inspection_json(tools::read_model(path, reading(key, strict))); }));
      },
      "path"_a, "key"_a, "strict"_a);
  m.def("mcnemar_p", tools::mcnemar_p, "only_a"_a, "only_b"_a);
  m.def("thousands", tools::thousands, "value"_a);
  bind_layers(m);
  const nlohmann::json build = tools::version_json();
  m.attr("__version__") = build.at("version").get<std::string>();
  m.attr("__commit__") = build.at("commit").get<std::string>();
  m.def("shut_down", [] { Worker::instance().shut_down(); });
}

}  // namespace nibblenet::python
