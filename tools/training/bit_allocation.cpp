#include "tools/training/bit_allocation.h"

#include <fmt/core.h>

#include <algorithm>

#include "tools/common/command_line.h"
#include "tools/common/numbers.h"
#include "tools/common/progress.h"
#include "tools/common/report.h"
#include "tools/training/calibration_options.h"
#include "training/compression/allocation_verifier.h"

namespace nibblenet::tools {
namespace {

constexpr int64_t batch_size = 64;

/// Half of the images of each class: those at even positions (`first`), or at odd ones.
Dataset half_of(const Dataset& all, bool first) {
  return subset(all, [&](int64_t position, int64_t) { return (position % 2 == 0) == first; });
}

constexpr double smallest_target = 1e-6, largest_target = 1e9;  // MB: a byte, and more than any disk has

/// Verifies an allocation, and shows progress.
using Verify = std::function<Verified(const Allocation&)>;

/// Prints a row a layer and a column a width or step, which shows `value` of it; brackets mark the
/// chosen one.
template <class Value>
void print_table(const std::vector<WeightSensitivity>& measured, const Allocation& allocation, Value value) {
  for (size_t i = 0; i < measured.size(); ++i) {
    fmt::print("{:<20}", measured[i].name);
    for (size_t c = 0; c < measured[i].choices.size(); ++c) {
      const MeasuredChoice& choice = measured[i].choices[c];
      const std::string label = choice.candidate.step > 0 ? fmt::format("{}", choice.candidate.step)
                                                          : fmt::format("{}", choice.candidate.scheme.bits);
      const std::string cell = fmt::format("{}: {}", label, value(choice));
      fmt::print(" {:>14}", c == allocation.choices[i] ? "[" + cell + "]" : cell + " ");
    }
    fmt::print("  {}\n", to_string(measured[i].choices[allocation.choices[i]].candidate));
  }
}

void print_tables(const std::vector<WeightSensitivity>& measured, const Allocation& allocation) {
  fmt::print("predictions' mean divergence from float (nats), one weight compressed at a time; chosen in brackets:\n");
  print_table(measured, allocation, [](const MeasuredChoice& c) { return fmt::format("{:.5f}", c.divergence); });
  if (measured.front().choices.front().compressed_bytes == 0) return;
  fmt::print("size of each choice in the compressed file (kB):\n");
  print_table(measured, allocation, [](const MeasuredChoice& c) {
    return fmt::format("{:.1f}", static_cast<double>(c.compressed_bytes) / 1000);
  });
}

nlohmann::json to_json(const std::vector<WeightSensitivity>& measured, const Allocation& allocation,
                       const Verified& verified, const AllocationOptions& options) {
  nlohmann::json json = {{"images", options.images},
                         {"predicted_divergence", allocation.loss},
                         {"verified",
                          {{"float_accuracy", verified.float_accuracy},
                           {"accuracy", verified.accuracy},
                           {"float_loss", verified.float_loss},
                           {"loss", verified.loss},
                           {"divergence", verified.divergence},
                           {"only_float", verified.right.first},
                           {"only_packed", verified.right.second}}}};
  for (size_t i = 0; i < measured.size(); ++i) {
    const Candidate& chosen = measured[i].choices[allocation.choices[i]].candidate;
    nlohmann::json layer = {{"name", measured[i].name}, {"scheme", to_string(chosen.scheme)}, {"step", chosen.step}};
    for (const MeasuredChoice& choice : measured[i].choices)
      layer["weighed"].push_back({{"scheme", to_string(choice.candidate.scheme)},
                                  {"step", choice.candidate.step},
                                  {"bytes", choice.payload_bytes},
                                  {"stored_bytes", choice.stored_bytes},
                                  {"file_bytes", choice.compressed_bytes},
                                  {"divergence", choice.divergence}});
    json["layers"].push_back(std::move(layer));
  }
  return json;
}

Allocation losing_at_most(double points, const std::vector<Allocation>& front, const Verify& verify) {
  const auto lost = [&](const Allocation& allocation) { return verify(allocation).lost_points(); };
  const std::optional<Allocation> smallest = smallest_within(front, points, lost);
  if (!smallest)
    fail<UsageError>("--max-loss {}: even the widest codes lose {:.2f} points on the images that verify", points,
                     lost(front.back()));
  return *smallest;
}

Allocation within(int64_t budget, const std::vector<Allocation>& front, const std::string& target,
                  const std::string& smallest) {
  const std::optional<Allocation> best = best_within(front, budget);
  if (!best) fail<UsageError>("{} cannot be met: the smallest choice takes {}", target, smallest);
  return *best;
}

/// The allocation that changes predictions least within the target, or for --max-loss the smallest.
/// Throws UsageError that names the smallest file or number of bits when none meets the target.
Allocation choose(const AllocationOptions& options, const std::vector<WeightSensitivity>& measured, int64_t other_bytes,
                  const Verify& verify) {
  int64_t weights = 0;
  std::vector<std::vector<AllocationChoice>> layers;
  for (const WeightSensitivity& weight : measured) {
    weights += weight.weights;
    auto& layer = layers.emplace_back();
    for (const MeasuredChoice& choice : weight.choices)
      layer.push_back({options.by_compressed()   ? choice.compressed_bytes
                       : options.target_bits > 0 ? choice.payload_bytes
                                                 : choice.stored_bytes,
                       choice.divergence});
  }
  const std::vector<Allocation> front = allocation_front(layers);
  if (options.max_loss >= 0) return losing_at_most(options.max_loss, front, verify);
  const int64_t smallest = front.front().bytes;
  if (options.target_bits > 0)
    return within(
        static_cast<int64_t>(options.target_bits * static_cast<double>(weights) / 8), front,
        fmt::format("--target-bits {}", options.target_bits),
        fmt::format("{:.4f} bits a weight", 8.0 * static_cast<double>(smallest) / static_cast<double>(weights)));
  return within(
      static_cast<int64_t>(options.file_target() * 1e6) - other_bytes, front,
      fmt::format("{} {}", options.chooses_steps() ? "--target-file" : "--target-size", options.file_target()),
      megabytes(static_cast<double>(smallest + other_bytes)));
}

}  // namespace

void AllocationOptions::add_to(CLI::App& app) {
  auto* bits =
      app.add_option("--target-bits", target_bits,
                     "Choose each layer's width so that the weights, scales included, take at most X bits on average "
                     "and the predictions change least; measured on the training images of --data")
          ->type_name("X")
          ->check(CLI::Range(1.0, 32.0));
  auto* size = app.add_option("--target-size", target_size,
                              "Choose each layer's width for a file of at most MB (10^6 bytes): compressed if "
                              "--compress is given, else plain")
                   ->type_name("MB")
                   ->check(CLI::Range(smallest_target, largest_target));
  auto* file = app.add_option("--target-file", target_file,
                              "Choose each layer's step size of linear codes (as --range step:X) so that the "
                              "compressed file takes at most MB and the predictions change least; implies --compress; "
                              "--rate-weight counts")
                   ->type_name("MB")
                   ->check(CLI::Range(smallest_target, largest_target));
  auto* loss = app.add_option("--max-loss", max_loss,
                              "Choose the smallest model that loses at most POINTS of accuracy on training images that "
                              "are kept for that")
                   ->type_name("POINTS")
                   ->check(CLI::Range(0.0, 100.0));
  bits->excludes(size)->excludes(file)->excludes(loss);
  size->excludes(file)->excludes(loss);
  file->excludes(loss);
  add_checked(app, "--target-images", images, positive,
              "Images that choices are measured on; as many others verify the choice");
}

Dataset AllocationOptions::load_images(DataSource& data, const StateDict& model, int64_t calibrated) const {
  const bool held_out = trained_with_validation(model);  // no calibration sees these
  const Dataset all =
      held_out ? data.load(Split::validation, 2 * images) : data.load(Split::train, calibrated + 2 * images);
  const int64_t each = images_per_class(2 * images, all.classes.size());
  return subset(all, [&](int64_t position, int64_t size) { return position >= size - each; });
}

AllocatedWeights allocate(const AllocationOptions& options, Backend& backend, const StateDict& floats,
                          const Dataset& images, int64_t other_bytes, const Candidates& candidates,
                          const QuantizeWeight& quantize) {
  const Dataset measuring = half_of(images, true), verifying = half_of(images, false);
  const Preprocess preprocess = Preprocess::for_image_size(image_size_of(floats));
  Network network(backend, dequantized(floats), backend.preferred_precision());
  const QuantizeWeight quantize_once = remembered(quantize);
  std::vector<WeightSensitivity> measured;
  {
    Progress progress("measuring choices", "choices");
    measured = measure_sensitivity(
        network, floats, measuring, preprocess, batch_size, candidates, quantize_once,
        options.by_compressed() ? MeasuredBytes::stored_and_compressed : MeasuredBytes::stored, std::ref(progress));
  }

  std::optional<Progress> progress(std::in_place, "verifying: float", "images");
  AllocationVerifier verifier(network, floats, verifying, preprocess, batch_size, quantize_once, std::ref(*progress));
  const auto verify = [&](const Allocation& allocation) {
    progress.emplace("verifying: packed", "images");
    return verifier(chosen_candidates(measured, allocation), std::ref(*progress));
  };
  const Allocation chosen = choose(options, measured, other_bytes, verify);
  const Verified verified = verify(chosen);
  progress.reset();
  print_tables(measured, chosen);
  fmt::print(
      "verified on {} other {}training images: {:.2f} % against {:.2f} % in float (-{} +{}), cross-entropy {:.5f} "
      "against {:.5f}, divergence {:.5f} (sum of the layers' own: {:.5f})\n",
      verifying.size(), trained_with_validation(floats) ? "held-out " : "", 100 * verified.accuracy,
      100 * verified.float_accuracy, verified.right.first, verified.right.second, verified.loss, verified.float_loss,
      verified.divergence, chosen.loss);
  AllocatedWeights result;
  for (const auto& [weight, candidate] : chosen_candidates(measured, chosen))
    result.weights[weight] = quantize_once(floats.at(weight), candidate);
  result.json = to_json(measured, chosen, verified, options);
  result.json["split"] = to_string(trained_with_validation(floats) ? Split::validation : Split::train);
  return result;
}

}  // namespace nibblenet::tools
