#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "layers/network/class_names.h"
#include "layers/network/network.h"
#include "tools/common/command_line.h"
#include "tools/common/data_search.h"
#include "tools/common/model_search.h"
#include "tools/common/numbers.h"
#include "tools/common/report.h"
#include "tools/timing/comparison.h"
#include "tools/timing/prefixes.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Timing {
  int64_t batch = 0;
  Latency warm;
  Latency cold;
  std::optional<Latency> device;  ///< by the device's clock, where there is one
  std::optional<Latency> cold_device;

  double images_per_second() const { return 1000.0 * static_cast<double>(batch) / warm.median; }
};

void print(const Timing& t) {
  fmt::print("{:>6} {:>10.3f} {:>9.3f} {:>9.3f} {:>11.1f} {:>10.3f} {:>9.3f} {:>9.3f}\n", t.batch, t.warm.median,
             t.warm.p10, t.warm.p90, t.images_per_second(), t.cold.median, t.cold.p10, t.cold.p90);
  if (t.device)
    fmt::print("{:>6} {:>10.4f} {:>9.4f} {:>9.4f} {:>11.1f} {:>10.4f} {:>9.4f} {:>9.4f}\n", "device", t.device->median,
               t.device->p10, t.device->p90, 1000.0 * static_cast<double>(t.batch) / t.device->median,
               t.cold_device->median, t.cold_device->p10, t.cold_device->p90);
  std::fflush(stdout);
}

nlohmann::json or_null(const std::optional<Latency>& latency) { return latency ? to_json(*latency) : nlohmann::json(); }

nlohmann::json to_json(const Timing& t) {
  return {{"batch", t.batch},
          {"latency_ms", t.warm.median},
          {"latency_ms_p10", t.warm.p10},
          {"latency_ms_p90", t.warm.p90},
          {"samples", t.warm.samples.size()},
          {"samples_ms", t.warm.samples},
          {"images_per_second", t.images_per_second()},
          {"cold_latency_ms", t.cold.median},
          {"cold_latency_ms_p10", t.cold.p10},
          {"cold_latency_ms_p90", t.cold.p90},
          {"cold_samples", t.cold.samples.size()},
          {"cold_samples_ms", t.cold.samples},
          {"device", or_null(t.device)},
          {"cold_device", or_null(t.cold_device)}};
}

struct Options : CommonOptions {
  std::vector<int64_t> batches = {1, 8, 128};
  double seconds = 2;
  std::string task = "T224";
  bool fold_first = false;
  bool no_fold_first = false;
  bool verbose = false;
  bool prefixes = false;
  bool compare = false;
  std::vector<std::string> sides;
  int rounds = 2;
  double energy_seconds = 0;
  std::string data;
  Unreadable unreadable = Unreadable::refuse;
  int64_t limit = 0;
};

/// Each layer alone beside its bound, for people and as JSON. A folded layer is not timed alone.
nlohmann::json bench_layers(const Network& network, const StateDict& parameters, int image_size, int64_t batch,
                            const Ceilings& ceilings, double seconds) {
  std::vector<LayerTiming> timings =
      time_layers(network.backend(), parameters, network.precision(), image_size, batch, seconds, "layers");
  if (network.folded()) timings.erase(timings.begin());
  fmt::print("{}", layers_table(timings, ceilings));
  nlohmann::json json = nlohmann::json::array();
  for (const LayerTiming& timing : timings) json.push_back(to_json(timing, ceilings));
  return json;
}

/// Each prefix of a pass beside the bound of what it adds, for people and as JSON. Empty where the
/// device's clock does not time passes.
nlohmann::json bench_prefixes(TimedForward& forward, const Ceilings& ceilings, double seconds,
                              const std::string& label) {
  const std::vector<PrefixTiming> timings = time_prefixes(forward, seconds, label);
  nlohmann::json json = nlohmann::json::array();
  if (timings.empty()) return json;
  fmt::print("{}", prefixes_table(timings, ceilings));
  for (const PrefixTiming& timing : timings) json.push_back(to_json(timing, ceilings));
  return json;
}

/// A device's driver, clocks, power and temperature at this moment, or null.
nlohmann::json state_json(Backend& backend) {
  const std::optional<DeviceState> state = backend.state();
  if (!state) return {};
  return {{"driver", state->driver},
          {"sm_mhz", state->sm_mhz},
          {"memory_mhz", state->memory_mhz},
          {"watts", state->watts},
          {"celsius", state->celsius}};
}

void bench(const Options& options) {
  const auto backend = options.device.make();
  const std::filesystem::path model = find_model(options.model, ModelKind::packed);
  StateDict dict = load_model(model, options.checksums);
  const StateDict parameters = options.verbose ? copy_of(dict) : StateDict();
  const int image_size = image_size_of(dict);
  const PrecisionChoice choice = options.device.precision_of(*backend, dict);
  const Task task = options.task == "T32" || options.fold_first ? Task::t32 : Task::t224;
  if (options.prefixes && task == Task::t32) throw UsageError("--prefixes times T224: preparing images is no layer");
  const ResampleTables tables = small_image_tables(image_size);
  const bool may_fold = task == Task::t32 && !options.no_fold_first;
  Network network(*backend, std::move(dict), choice.precision, may_fold ? &tables : nullptr,
                  options.fold_first ? Folding::required : Folding::where_it_saves);
  CacheSweep sweep(*backend);
  expect_demanded(choice, network);
  fmt::print("{}, {}, {}; cold: after writing {} MiB\n", backend->description(), to_string(choice.precision),
             task == Task::t224 ? fmt::format("images of {} x {}", image_size, image_size)
                                : fmt::format("bytes of {} x {} to {} x {}{}", small_size, small_size, image_size,
                                              image_size, network.folded() ? ", folded" : ""),
             sweep.bytes() >> 20);
  print_precision(choice, network);
  fmt::print("{:>6} {:>10} {:>9} {:>9} {:>11} {:>10} {:>9} {:>9}\n", "batch", "warm ms", "p10", "p90", "images/s",
             "cold ms", "p10", "p90");
  nlohmann::json document = {
      {"model", model.string()},           {"device", backend->name()},    {"description", backend->description()},
      {"image_size", image_size},          {"task", to_string(task)},      {"first_folded", network.folded()},
      {"cold_sweep_bytes", sweep.bytes()}, {"state", state_json(*backend)}};
  document.update(precision_json(choice, network));
  std::optional<Ceilings> ceilings;
  if (options.verbose || options.prefixes) {
    ceilings = measure_ceilings(*backend, *backend, options.seconds);
    fmt::print("ceilings: {}\n", to_string(*ceilings));
    document["ceilings"] = to_json(*ceilings);
  }
  const bool to_file = options.json != "-";  // then it holds what is done already, whatever stops this
  for (const int64_t batch : options.batches) {
    TimedForward forward(network, image_size, task, batch);
    const std::string label = fmt::format("batch {}", batch);
    const auto once = [&] { return forward.once(); };
    Timing timing{.batch = batch,
                  .warm = time_warm(once, options.seconds, label),
                  .cold = time_cold(once, sweep, options.seconds, label),
                  .device = std::nullopt,
                  .cold_device = std::nullopt};
    if (const auto recording = forward.record_layers(network.layers().size())) {
      timing.device = time_replays(*recording, options.seconds, label);
      timing.cold_device = time_cold_replays(*recording, sweep, options.seconds, label);
    }
    print(timing);
    nlohmann::json& result = document["results"].emplace_back(to_json(timing));
    result["state"] = state_json(*backend);
    if (options.prefixes) result["prefixes"] = bench_prefixes(forward, *ceilings, options.seconds / 2, label);
    if (to_file) write_json(options.json, document);
    if (!options.verbose) continue;
    const std::vector<LayerRoute> routes = layer_routes(network, {batch, image_size, image_size, 3});
    fmt::print("{}", routes_table(routes));
    document["results"].back()["routes"] = tools::to_json(routes);
    document["results"].back()["layers"] =
        bench_layers(network, parameters, image_size, batch, *ceilings, options.seconds / 4);
  }
  write_json(options.json, document);
}

/// The backends that the sides need, each once.
class Backends {
 public:
  Backends(const DeviceOptions& options, std::unique_ptr<Backend> own) : options_(options) {
    own_ = own->name();
    made_[own_] = std::move(own);
  }
  Backend& at(const std::string& device) {
    auto found = made_.find(device);
    if (found == made_.end()) found = made_.emplace(device, make_backend(device, options_.threads)).first;
    return *found->second;
  }
  Backend& own() { return at(own_); }

 private:
  DeviceOptions options_;
  std::string own_;
  std::map<std::string, std::unique_ptr<Backend>> made_;
};

/// Why there is no baseline beside this backend; nothing where there is one.
std::optional<std::string> baseline_missing(Backends& backends) {
  if (!backends.own().device_memory()) return "the CPU's products are a library's already";
  try {
    backends.at("cudnn");
    return std::nullopt;
  } catch (const Error& error) {
    return error.what();
  }
}

/// The images of --data; nothing without it.
std::optional<Dataset> test_images(const Options& options) {
  if (options.data.empty()) return std::nullopt;
  Dataset images = find_data(options.data, options.unreadable).load(Split::test, options.limit);
  const auto is_small = [](const Dataset::Image& image) {
    return image.width == small_size && image.height == small_size;
  };
  if (!std::ranges::all_of(images.images, is_small))
    fail<UsageError>("--compare measures accuracy on images of 32 x 32, and {} has others", options.data);
  return images;
}

/// The sides of --sides, which the devices can run.
std::vector<SideSpec> chosen_sides(const Options& options, Backends& backends, bool with_baseline) {
  Backend& own = backends.own();
  std::vector<SideSpec> specs;
  for (const std::string& side : options.sides.empty() ? default_sides(own, with_baseline) : options.sides) {
    specs.push_back(parse_side(side, own.name()));
    Backend& backend = backends.at(specs.back().device);
    backend.expect_support(specs.back().precision.value_or(backend.preferred_precision()));
  }
  return specs;
}

/// The part of a comparison's file that is not about sides.
nlohmann::json setting_json(const Options& options, const std::filesystem::path& model, const StateDict& floats,
                            Backend& backend, const Ceilings& ceilings, const std::optional<std::string>& missing,
                            const std::optional<Dataset>& images) {
  return {{"model", model.string()},
          {"device", backend.name()},
          {"description", backend.description()},
          {"image_size", image_size_of(floats)},
          {"state", state_json(backend)},
          {"ceilings", to_json(ceilings)},
          {"baseline", missing ? nlohmann::json(*missing) : nlohmann::json()},
          {"seconds", options.seconds},
          {"energy_seconds", options.energy_seconds},
          {"images", images ? images->size() : 0}};
}

void compare(const Options& options) {
  Backends backends(options.device, options.device.make());
  Backend& own = backends.own();
  const std::optional<std::string> missing = baseline_missing(backends);
  if (own.name() == "cudnn")
    throw UsageError("--compare sets cuDNN beside another device; use --device cuda, and --sides cudnn:float16");
  const std::vector<SideSpec> specs = chosen_sides(options, backends, !missing);
  const std::filesystem::path model = find_model(options.model, ModelKind::fine_tuned);
  const StateDict floats = load_model(model, options.checksums);
  if (floats.packed()) fail<UsageError>("{} is packed; --compare packs a float model itself: give one", model.string());
  std::optional<Dataset> images = test_images(options);
  const std::string match = images ? match_classes(*images, floats) : "";
  print_match(match);
  Backend& baseline = missing ? own : backends.at("cudnn");
  const Ceilings ceilings = measure_ceilings(own, baseline, options.seconds);
  fmt::print("{}\n", own.description());
  fmt::print("ceilings: {}\n", to_string(ceilings));
  if (options.energy_seconds > 0 && !own.joules()) fmt::print("energy: not measured, this device does not count it\n");
  Comparison comparison({.batches = options.batches,
                         .seconds = options.seconds,
                         .rounds = options.rounds,
                         .energy_seconds = options.energy_seconds,
                         .image_size = image_size_of(floats),
                         .verbose = options.verbose,
                         .images = images ? &*images : nullptr},
                        ceilings, floats);
  for (const SideSpec& spec : specs) {
    try {
      comparison.add(spec, backends.at(spec.device));
    } catch (const UsageError& error) {
      if (!spec.folded || !options.sides.empty()) throw;  // nobody asked for it
      fmt::print("left out: {}\n", error.what());
    }
  }
  nlohmann::json document = setting_json(options, model, floats, own, ceilings, missing, images);
  if (images) document["data_set"] = data_set_json(*images, match);
  const auto write = [&] {
    document["sides"] = comparison.to_json();
    write_json(options.json, document);
  };
  // A comparison takes long: a file holds what is done already, whatever stops it.
  const bool to_file = options.json != "-";
  comparison.run([&] {
    if (to_file) write();
  });
  print_if_standin(images && images->stand_in());
  if (!to_file) write();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Times the forward pass of a float or packed model at several batch sizes, up to the logits in the host's "
      "memory. Warm: one pass after the other, so that weights and images stay in the caches as far as they fit. Cold: "
      "before each pass, untimed, bench writes more memory than the caches hold. It prints medians, the 10th and the "
      "90th percentile; images/s follow from the warm median. Each batch size is warmed up for 50 passes and half a "
      "second, then sampled warm and cold until --seconds are over and there are 30 samples. Where these would take "
      "more than ten times --seconds, there are fewer, but at least 3. Warm passes shorter than 2 ms are timed several "
      "in a row. On a GPU, a second line gives the times of T224 by the GPU's own clock: events around replays of the "
      "recorded pass, without launch and copy.",
      "bench");
  Options options;
  app.add_option("MODEL", options.model,
                 fmt::format("Float or packed model ({}); without it the newest packed one in weights/, or the newest "
                             "fine-tuned one with --compare",
                             model_files));
  app.add_option("--batch", options.batches, "Batch sizes, separated by commas")
      ->delimiter(',')
      ->allow_extra_args(false)  // what follows may be MODEL
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  add_checked(app, "--seconds", options.seconds, CLI::Range(0.0, 3600.0),
              "Sampling time of each batch size, warm and again cold");
  add_checked(
      app, "--task", options.task, CLI::IsMember({"T224", "T32"}),
      "T224: starts from prepared images in the device's memory, in the precision of the computation. T32: starts "
      "from the bytes of 32 x 32 images, and folds the first convolution with their resize and normalisation, where "
      "that saves work");
  auto* fold = app.add_flag("--fold-first", options.fold_first, "Time T32, and refuse what cannot be folded");
  auto* no_fold = app.add_flag("--no-fold-first", options.no_fold_first,
                               "Do not fold in T32: enlarge and normalise the images first")
                      ->excludes(fold);
  auto* compare_flag =
      app.add_flag("--compare", options.compare,
                   "Pack a float MODEL in several ways and time all of them by turns: in both tasks, as a whole and "
                   "layer by layer, beside the device's peak rates; on a GPU also beside cuDNN and cuBLASLt")
          ->excludes(fold)
          ->excludes(no_fold);
  app.add_option(
         "--sides", options.sides,
         "What to compare, separated by commas: float32, float16, bfloat16 or SCHEME; with cudnn: in front of it; with "
         "+int8 or +bfloat16 behind a scheme, for products in that type; with +fold at the end. int8 takes each "
         "image's own largest input. Default: floats, every width, codebooks, some folded, the device's fast types")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->needs(compare_flag)
      ->type_name("LIST");
  add_checked(app, "--rounds", options.rounds, CLI::Range(1, 100),
              "How often to repeat a comparison, to see how far it spreads")
      ->needs(compare_flag);
  app.add_option("--energy", options.energy_seconds,
                 "Compare the energy of an image, too: run each side and batch size for SECONDS. Take 1 or more: the "
                 "counter changes about ten times a second. Only on GPUs with such a counter, which counts the work of "
                 "other processes as well")
      ->check(CLI::Range(0.0, 3600.0))
      ->needs(compare_flag)
      ->type_name("SECONDS");
  app.add_option("--data", options.data, "Compare accuracy, too, on the test images there")
      ->needs(compare_flag)
      ->type_name("PATH");
  add_skip_option(app, options.unreadable);
  add_checked(app, "--limit", options.limit, not_negative,
              "With --data: on the first N/classes images of every class; 0: all")
      ->needs(compare_flag);
  options.device.add_precision_to(app, "auto")->excludes(compare_flag);
  app.add_flag("--verbose", options.verbose,
               "Print which kernel computes each layer, and the layer's time alone beside its bound: its operations at "
               "the device's measured peak rate for their type, or its bytes at the measured bandwidth. With --compare "
               "for each side");
  app.add_flag("--prefixes", options.prefixes,
               "On a GPU, with T224: also time the first layers of the pass, one kernel more each time, by the GPU's "
               "clock. What a kernel adds is set beside its bound")
      ->excludes(compare_flag);
  options.add_to(app);
  return run_long_tool(app, argc, argv, [&] {
    if (options.compare)
      compare(options);
    else
      bench(options);
  });
}
