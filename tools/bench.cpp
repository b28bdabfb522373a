#include <fmt/core.h>

#include <algorithm>
#include <chrono>

#include "engine/core/random.h"
#include "engine/model/network.h"
#include "tools/common/command_line.h"
#include "tools/common/model_search.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Timing {
  int64_t batch;
  double median, p10, p90;  ///< milliseconds
};

double percentile(const std::vector<double>& sorted, double fraction) {
  return sorted[static_cast<size_t>(fraction * static_cast<double>(sorted.size() - 1) + 0.5)];
}

/// Warm latency of the forward pass: repeated until both `seconds` and three samples are over.
Timing time_forward(Network& network, int image_size, int64_t batch, double seconds) {
  using Clock = std::chrono::steady_clock;
  Backend& backend = network.backend();
  const Shape shape{batch, image_size, image_size, 3};
  Pass pass(network, 0, network.layers().size(), shape, Pass::Mode::inference);
  Tensor<float> host(host_memory(), shape, MemoryCategory::data);
  Random random(1);
  for (float& value : host.view()) value = 4.0F * random.uniform() - 2.0F;
  Tensor<float> images(backend, shape, MemoryCategory::data);
  backend.copy_from_host(images.data(), host.data(), host.view().span().size_bytes());

  std::vector<float> logits(static_cast<size_t>(batch * network.classes()));
  const auto once = [&] {
    const auto start = Clock::now();
    const auto output = pass.forward(std::as_const(images).view());
    backend.copy_to_host(logits.data(), output.data(), output.span().size_bytes());
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  for (int i = 0; i < 2; ++i) once();
  std::vector<double> samples;
  for (double spent = 0; spent < 1000 * seconds || samples.size() < 3;) {
    if (interrupted()) throw Stopped("stopped");
    samples.push_back(once());
    spent += samples.back();
  }
  std::ranges::sort(samples);
  return {batch, percentile(samples, 0.5), percentile(samples, 0.1), percentile(samples, 0.9)};
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times the forward pass of a float or packed model against the batch size.", "bench");
  std::string model, json;
  DeviceOptions device;
  std::vector<int64_t> batches = {1, 8, 128};
  double seconds = 2;
  app.add_option("MODEL", model, "Float or packed model; without it the newest packed one in weights/");
  app.add_option("--batch", batches, "Batch sizes, separated by commas")
      ->delimiter(',')
      ->allow_extra_args(false)  // what follows may be MODEL
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--seconds", seconds, "Measure each batch size for so long")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  device.add_to(app);
  device.add_precision_to(app);
  add_json_option(app, json);
  return run_tool(app, argc, argv, [&] {
    catch_interrupts();
    const auto backend = device.make();
    StateDict dict = load_model(find_model(model, ModelKind::packed));
    const int image_size = image_size_of(dict.metadata);
    const Precision precision = device.precision_on(*backend);
    Network network(*backend, std::move(dict), precision);
    fmt::print("{}, {}\n{:>6} {:>12} {:>10} {:>10} {:>12}\n", backend->description(), to_string(precision), "batch",
               "median ms", "p10", "p90", "images/s");
    nlohmann::json document = {{"device", backend->name()},
                               {"description", backend->description()},
                               {"precision", to_string(precision)},
                               {"image_size", image_size}};
    for (const int64_t batch : batches) {
      const Timing t = time_forward(network, image_size, batch, seconds);
      const double rate = 1000.0 * static_cast<double>(batch) / t.median;
      fmt::print("{:>6} {:>12.3f} {:>10.3f} {:>10.3f} {:>12.1f}\n", batch, t.median, t.p10, t.p90, rate);
      document["results"].push_back({{"batch", batch},
                                     {"latency_ms", t.median},
                                     {"latency_ms_p10", t.p10},
                                     {"latency_ms_p90", t.p90},
                                     {"images_per_second", rate}});
    }
    write_json(json, document);
  });
}
