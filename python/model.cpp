#include "python/model.h"

#include <malloc.h>

#include <algorithm>

#include "engine/core/parallel.h"
#include "engine/core/progress.h"
#include "engine/core/threads.h"
#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/weight_cpu.h"
#include "layers/network/class_names.h"
#include "layers/network/image_feed.h"
#include "python/options.h"
#include "tools/common/data_search.h"
#include "tools/common/interrupts.h"
#include "tools/common/model_search.h"
#include "tools/common/outputs.h"
#include "tools/common/progress.h"
#include "tools/common/report.h"
#include "tools/common/simulation.h"
#include "tools/training/packing.h"

namespace nibblenet::python {
namespace {

/// The options of tools/pack that say how a model is packed.
struct PackOptions {
  tools::PackingFlags packing;
  std::string data;
  bool compress = false;
};

/// Puts a backend's operations into the order of a caller's stream, for the life of this object.
class InOrderOf {
 public:
  InOrderOf(Backend& backend, uintptr_t stream) : backend_(backend), stream_(stream) {
    backend.wait_for_stream(stream);
  }
  ~InOrderOf() {
    try {
      backend_.let_stream_wait(stream_);
    } catch (const Error&) {  // the next call reports it
    }
  }
  InOrderOf(const InOrderOf&) = delete;
  InOrderOf& operator=(const InOrderOf&) = delete;

 private:
  Backend& backend_;
  uintptr_t stream_;
};

/// What logits of images cost, as Pace takes it: a share for the weights, which a pass reads once.
double amount_of(const Shape& images) {
  constexpr double weights = 4;  // images
  return static_cast<double>(images.elements()) + weights * static_cast<double>(images.inner_elements());
}

void expect_square(const Shape& images) {
  if (images[1] != images[2] || images[3] != 3)
    fail<ShapeError>("expected square images of 3 channels, got {}x{} of {}", images[1], images[2], images[3]);
}

/// Fills in what Model::let_codes_go() freed.
void fetch_codes(Parameter& parameter, const Network& network) {
  const auto layer = std::ranges::find_if(
      network.layers(), [&](const Layer& each) { return each.weight && each.spec.name + ".weight" == parameter.name; });
  const auto& weight = dynamic_cast<const PackedWeightCpu&>(*layer->weight);
  const PackedView& view = weight.view();
  const ResidentSize size = weight.resident();
  const auto copy = [](const void* from, int64_t bytes) {
    const auto* first = static_cast<const uint8_t*>(from);
    return from == nullptr ? std::vector<uint8_t>() : std::vector<uint8_t>(first, first + bytes);
  };
  auto& packed = std::get<PackedTensor>(parameter.value);
  packed.codes =
      copy(view.codes, view.trellis_quarters > 0 ? view.trellis().bytes() : view.channels * view.code_stride);
  packed.scales = copy(view.scales, size.scales);
  packed.zero_points = copy(view.zero_points, size.zero_points);
  packed.block_ids = copy(view.block_ids, view.channels * view.block_id_stride);
}

/// Gives memory that was freed back to the system, where the C library would keep it.
void release_free_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

PackOptions pack_options(std::vector<std::string> arguments) {
  CLI::App app("pack");
  PackOptions options;
  tools::PackingFlags& flags = options.packing;
  flags.scheme.add_to(app);
  flags.calibration.add_source_to(app);
  flags.calibration.add_choice_to(app);
  flags.allocation.add_to(app);
  app.add_option("--data", options.data);
  app.add_flag("--compress", options.compress);
  parse_options(app, std::move(arguments));
  flags.validate();
  options.compress = options.compress || flags.implies_compression();
  flags.allocation.compressed = options.compress;
  return options;
}

}  // namespace

Model::Model(StateDict dict, std::string title, tools::DeviceOptions device)
    : dict_(std::move(dict)), title_(std::move(title)), device_(std::move(device)) {
  tools::prepare_model(*dict_, title_);
}

std::unique_ptr<Model> Model::load(const std::filesystem::path& path, const Reading& reading,
                                   tools::DeviceOptions device) {
  auto model = std::make_unique<Model>(tools::read_model(path, reading), path.string(), std::move(device));
  model->file_ = path;
  model->compress_ = std::ranges::any_of(model->dict_->parameters,
                                         [](const Parameter& parameter) { return parameter.compressed_bytes > 0; });
  return model;
}

std::unique_ptr<Model> Model::float_copy() {
  expect_open();
  StateDict floats = codes_let_go_ ? dequantized(whole_dict()) : dequantized(*dict_);
  forget_precisions(floats.metadata);
  auto copy = std::make_unique<Model>(std::move(floats), title_, device_);
  copy->file_ = file_;
  return copy;
}

nlohmann::json Model::pack(const std::vector<std::string>& arguments) {
  const PackOptions options = pack_options(arguments);
  const tools::PackingFlags& flags = options.packing;
  expect_open();
  if (dict_->packed()) fail<UsageError>("{} is packed already; pack the float model it came from", title_);
  flags.expect_fit(*dict_);
  tools::PackingReport report = tools::pack_by_flags(flags, *dict_, file_, options.data, backend());
  compress_ = options.compress;
  file_target_ = flags.allocation.target_file;
  runner_.reset();
  network_.reset();
  dict_->file_bytes = dict_->header_bytes = 0;
  for (Parameter& parameter : dict_->parameters) parameter.file_bytes = 0;
  return report.json;
}

nlohmann::json Model::simulate(const std::string& name, const std::string& repair) {
  SimulatedScheme scheme = parse_simulated_scheme(name);
  if (!repair.empty()) scheme.repairs = parse_linear_repairs(repair);
  validate(scheme);
  expect_open();
  tools::Progress progress("simulating", "weights");
  const tools::SimulationReport report = tools::simulate_weights(
      *dict_, scheme, [&](int64_t done, int64_t total) { progress.update_or_stop(done, total); });
  runner_.reset();
  network_.reset();
  file_.clear();
  dict_->file_bytes = dict_->header_bytes = 0;
  for (Parameter& parameter : dict_->parameters) parameter.file_bytes = 0;
  return tools::simulation_json(report);
}

void Model::save(const std::filesystem::path& path, std::optional<bool> compress) {
  expect_open();
  const auto claim = tools::claim_output("save", path, tools::OutputKind::model);
  tools::Progress progress("encoding", "weights");
  std::optional<StateDict> whole;
  if (codes_let_go_) whole = whole_dict();
  save_state_dict(
      path, whole ? *whole : *dict_, compress.value_or(compress_) ? Compression::rans : Compression::none,
      [&](int64_t done, int64_t total, const std::string& weight) { progress.update_or_stop(done, total, weight); });
  dict_ = load_state_dict(path);
  codes_let_go_ = false;
  file_ = path;
  runner_.reset();
  network_.reset();
  if (const auto bytes = static_cast<double>(dict_->file_bytes); file_target_ > 0 && bytes > file_target_ * 1e6)
    fail<Error>("{} became {}, more than the target", path.string(), tools::megabytes(bytes));
}

nlohmann::json Model::size() {
  const Network& of = network();
  return tools::size_json(of.ledger(), of.file_bytes(), of.header_bytes());
}

nlohmann::json Model::precision() {
  const Network& of = network();
  nlohmann::json json = tools::precision_json(choice_, of);
  json["notes"] = precision_lines(choice_, of);
  return json;
}

nlohmann::json Model::description() {
  expect_open();
  return {{"network", network_of(*dict_).name},
          {"classes", class_names(dict_->metadata, class_count(*dict_))},
          {"image_size", image_size_of(*dict_)},
          {"packed", dict_->packed()},
          {"device", device_.device},
          {"metadata", dict_->metadata}};
}

const StateDict& Model::dict() {
  expect_open();
  return *dict_;
}

Parameter Model::parameter(const std::string& name) {
  expect_open();
  const Parameter& held = dict_->at(name);
  Parameter copy{.name = name};
  if (!held.packed()) {
    copy.value = held.dequantized();
    return copy;
  }
  copy.value = held.packed_values();
  if (codes_let_go_) fetch_codes(copy, *network_);
  return copy;
}

StateDict Model::whole_dict() {
  expect_open();
  StateDict whole = copy_of(*dict_);
  for (Parameter& parameter : whole.parameters)
    if (codes_let_go_ && parameter.packed()) fetch_codes(parameter, *network_);
  return whole;
}

void Model::let_codes_go() {
  for (const Layer& layer : network_->layers())
    if (layer.weight && layer.weight->packed() && dynamic_cast<PackedWeightCpu*>(layer.weight.get()) == nullptr) return;
  for (Parameter& parameter : dict_->parameters) {
    if (!parameter.packed()) continue;
    const PackedTensor& packed = parameter.packed_values();
    parameter.value = PackedTensor{.scheme = packed.scheme, .shape = packed.shape, .codebook = packed.codebook};
    codes_let_go_ = true;
  }
  release_free_memory();
}

/// Runs the images, `batch` at a time, prepared by prepare(runner, first, count); hands each
/// output to use(output, first).
template <class Prepare, class Use>
void Model::infer(int64_t images, int64_t size, int64_t batch, Prepare prepare, Use use) {
  if (batch < 1) fail<UsageError>("batch {}: must be 1 or more", batch);
  expect_image_size(network().spec(), size);
  if (images == 0) return;
  Runner& run = runner(size, std::min(batch, images));
  for (int64_t first = 0; first < images; first += batch) {
    if (tools::interrupted()) throw Interrupted("stopped");
    use(run.pass.forward(prepare(run, first, std::min(batch, images - first))), first);
  }
}

template <class Prepare>
Tensor<float> Model::logits_of(Pace& pace, const Shape& given, int64_t size, int64_t batch, Prepare prepare) {
  Network& net = network();
  const int64_t images = given[0];
  const auto compute = [&] {
    Tensor<float> logits(host_memory(), {images, net.classes()}, MemoryCategory::data);
    infer(images, size, batch, prepare, [&](TensorView<const float> output, int64_t first) {
      net.backend().copy_to_host(logits.view().slice(first, output.size(0)).data(), output.data(),
                                 output.span().size_bytes());
    });
    return logits;
  };
  if (net.backend().device_memory()) return compute();
  return pace.timed(amount_of(given), compute);
}

Brevity Model::brevity_of(const Planes<const float>& images) const {
  return pace_of_floats_.of(amount_of(images.shape));
}

Brevity Model::brevity_of(TensorView<const uint8_t> images) const {
  return pace_of_bytes_.of(amount_of(images.shape()));
}

template <class Prepare>
void Model::logits_in_order(TensorView<float> y, int64_t images, int64_t size, int64_t batch, GpuCaller caller,
                            Prepare prepare) {
  expect_shape(y.shape(), {images, classes_on(caller.gpu)}, "logits");
  Backend& gpu = network().backend();
  const InOrderOf order(gpu, caller.stream);
  infer(images, size, batch, prepare,
        [&](TensorView<const float> output, int64_t first) { gpu.convert(y.slice(first, output.size(0)), output); });
}

Tensor<float> Model::logits(const Planes<const float>& images, int64_t batch) {
  const int64_t size = images.shape[2];
  expect_square({images.shape[0], size, images.shape[3], images.shape[1]});
  const std::optional<TensorView<const float>> in_place = channels_last(images);
  const bool host = !backend().device_memory();
  const auto prepare = [&](Runner& run, int64_t first, int64_t count) -> ConstActivations {
    if (in_place) {
      const TensorView<const float> some = in_place->slice(first, count);
      return host ? ConstActivations(some) : run.images.upload(some);
    }
    const TensorView<float> room = run.images.host_images().slice(0, count);
    gather(room, images, first);
    return run.images.upload(TensorView<const float>(room));
  };
  return logits_of(pace_of_floats_, images.shape, size, batch, prepare);
}

void Model::logits_on_gpu(TensorView<float> y, TensorView<const float> images, int64_t batch, GpuCaller caller) {
  expect_square(images.shape());
  logits_in_order(y, images.size(0), images.size(1), batch, caller,
                  [&](Runner&, int64_t first, int64_t count) { return ConstActivations(images.slice(first, count)); });
}

void Model::logits_on_gpu(TensorView<float> y, TensorView<const uint8_t> images, int64_t batch, GpuCaller caller) {
  const Preprocess preprocess = preparation_of(images.shape());
  const ImageSize size{static_cast<int>(images.size(2)), static_cast<int>(images.size(1))};
  logits_in_order(y, images.size(0), preprocess.crop, batch, caller, [&](Runner& run, int64_t first, int64_t count) {
    if (!run.resident || run.resident_size != size) {
      run.resident.reset();
      run.resident.emplace(network().backend(), preprocess, run.batch, network().storage(), size, ImageBytes::resident);
      run.resident_size = size;
    }
    return run.resident->prepare(images.slice(first, count));
  });
}

/// How RGB images of this shape are prepared. Throws ShapeError.
Preprocess Model::preparation_of(const Shape& images) const {
  if (images[3] != 3 || images[1] < 1 || images[2] < 1)
    fail<ShapeError>("expected images of 3 channels and at least a pixel, got {}", to_string(images));
  expect_open();
  constexpr int64_t most = 1 << 20;
  if (images[1] > most || images[2] > most) fail<ShapeError>("images of more than {} pixels a side", most);
  return Preprocess::for_image_size(image_size_of(*dict_));
}

int64_t Model::classes_on(int gpu) {
  expect_open();
  const std::optional<int> number = backend().gpu_number();
  if (!number)
    fail<UsageError>("images are on cuda:{}, the model is on the CPU: pass images.cpu(), or load it with device='cuda'",
                     gpu);
  if (*number != gpu)
    fail<UsageError>("images are on cuda:{0}, the model is on cuda:{1}: pass images.to('cuda:{1}')", gpu, *number);
  return class_count(*dict_);
}

Tensor<float> Model::logits(TensorView<const uint8_t> images, int64_t batch) {
  const Preprocess preprocess = preparation_of(images.shape());
  const auto prepare = [&](Runner& run, int64_t first, int64_t count) -> ConstActivations {
    const TensorView<float> prepared = run.images.host_images().slice(0, count);
    const int cores = device_.threads > 0 ? device_.threads : default_threads();
    const auto threads = static_cast<unsigned>(std::min<int64_t>(cores, count));
    parallel_for(threads, threads, 1, [&](size_t thread) {
      Preprocessor preprocessor(preprocess);
      for (auto i = static_cast<int64_t>(thread); i < count; i += threads)
        preprocessor.run(images.slice(first + i, 1).data(), static_cast<int>(images.size(2)),
                         static_cast<int>(images.size(1)), false, prepared.slice(i, 1).data());
    });
    return run.images.upload(TensorView<const float>(prepared));
  };
  return logits_of(pace_of_bytes_, images.shape(), preprocess.crop, batch, prepare);
}

Evaluation Model::evaluate(Dataset& data, int64_t batch, int image_size, std::optional<bool> asked_for,
                           bool fold_first) {
  expect_open();
  if (data.size() == 0) fail<UsageError>("there are no images to evaluate");
  if (batch < 1) fail<UsageError>("batch {}: must be 1 or more", batch);
  if (asked_for) tools::print_match(match_classes(data, *dict_, *asked_for));
  const Preprocess preprocess = Preprocess::for_image_size(image_size_of(*dict_, image_size));
  tools::Progress progress("evaluating", "images");
  if (fold_first) {
    const ResampleTables tables = tables_of_all(data, preprocess);
    StateDict whole = whole_dict();
    const PrecisionChoice choice = device_.precision_of(backend(), whole);
    Network folded(backend(), std::move(whole), choice.precision, &tables);
    expect_demanded(choice, folded);
    return nibblenet::evaluate(folded, data, preprocess, batch, std::ref(progress));
  }
  return nibblenet::evaluate(network(), data, preprocess, batch, std::ref(progress));
}

void Model::close() {
  runner_.reset();
  network_.reset();
  backend_.reset();
  dict_.reset();
  release_free_memory();
}

void Model::expect_open() const {
  if (!dict_) fail<Error>("{}: the model is closed", title_);
}

Backend& Model::backend() {
  if (!backend_) backend_ = device_.make();
  backend_->take_turn();  // other models have their own threads
  return *backend_;
}

Network& Model::network() {
  expect_open();
  Backend& device = backend();
  if (!network_) {
    choice_ = device_.precision_of(device, *dict_);
    network_.emplace(device, copy_of(*dict_), choice_.precision);
    try {
      expect_demanded(choice_, *network_);
    } catch (const UsageError&) {
      network_.reset();
      throw;
    }
    let_codes_go();
  }
  return *network_;
}

Model::Runner& Model::runner(int64_t size, int64_t batch) {
  if (runner_ && runner_->size == size && runner_->batch >= batch) return *runner_;
  runner_.reset();
  Network& net = network();
  Preprocess input = Preprocess::for_image_size(static_cast<int>(size));
  const Shape largest{batch, size, size, 3};
  runner_.emplace(Runner{{net, 0, net.layers().size(), largest, Pass::Mode::inference},
                         {net.backend(), input, batch, net.storage(), std::nullopt},
                         size,
                         batch});
  return *runner_;
}

}  // namespace nibblenet::python
