#include "tools/training/precision_report.h"

#include <fmt/ranges.h>

#include "layers/network/class_names.h"
#include "tools/common/progress.h"
#include "tools/training/calibration_options.h"
#include "training/compression/precision_cost.h"

namespace nibblenet::tools {
namespace {

constexpr int64_t wanted_images = 500;
constexpr int64_t images_a_pass = 64;

PrecisionReport not_measured(const std::string& why) {
  return {.line = fmt::format("what int8 and bfloat16 cost was not measured: {}", why),
          .json = {{"divergence", nullptr}, {"images", 0}, {"not_measured", why}}};
}

}  // namespace

PrecisionImages load_precision_images(DataSource& data, const StateDict& model, const Calibration* calibration) {
  PrecisionImages result{.images = {}, .split = Split::train, .missing = {}};
  const int64_t calibrated = calibration != nullptr ? calibration->images : 0;
  try {
    if (trained_with_validation(model)) {
      result.split = Split::validation;
      result.images = data.load(Split::validation, wanted_images);
    } else {
      result.images = images_behind(data.load(Split::train, calibrated + wanted_images), calibrated, wanted_images);
    }
  } catch (const FormatError& error) {
    result.missing = fmt::format("no training images could be read ({})", error.what());
    return result;
  }
  if (result.images.size() == 0)
    result.missing = "the calibration was made on all training images; --calibration-images N leaves some";
  else
    match_classes(result.images, model, data.asked_for());
  return result;
}

PrecisionReport measure_and_describe(StateDict& packed, const PrecisionImages& images, Backend& backend,
                                     double largest) {
  if (!images.missing.empty()) return not_measured(images.missing);
  std::unique_ptr<Backend> cpu;
  if (!computes_narrow(backend)) cpu = make_backend("cpu", 0);
  Backend& measuring = cpu ? *cpu : backend;
  const auto measure = [&] {
    Progress progress("measuring precisions", "images");
    auto divergences =
        measure_precisions(measuring, packed, images.images, Preprocess::for_image_size(image_size_of(packed)),
                           images_a_pass, std::ref(progress));
    progress.finish();
    return divergences;
  };
  std::map<Precision, PrecisionDivergence> measured = measure();
  if (measured.at(Precision::int8).nats > largest && restore_input_steps(packed.metadata)) measured = measure();
  std::vector<std::string> costs;
  PrecisionReport report{.line = {}, .json = {{"images", images.images.size()}, {"not_measured", nullptr}}};
  report.json["split"] = to_string(images.split);
  for (const auto& [precision, divergence] : measured) {
    set_divergence(packed.metadata, precision, divergence);
    report.json["divergence"][std::string(to_string(precision))] = divergence.nats;
    costs.push_back(fmt::format("{:.7f} in {}", divergence.nats, to_string(precision)));
  }
  report.line =
      fmt::format("divergence from float32: {} ({} {}training images it was not calibrated on)", fmt::join(costs, ", "),
                  images.images.size(), images.split == Split::validation ? "held-out " : "");
  return report;
}

}  // namespace nibblenet::tools
