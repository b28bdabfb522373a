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

/// "linear, step 0.5", "trellis 1.25": what tells candidates of a weight apart. Their widths where
/// they go by step follow from the weight.
std::string label_of(const Candidate& candidate) {
  const std::string_view method = traits_of(candidate.scheme.method).name;
  return candidate.step > 0 ? fmt::format("{}, step {}", method, candidate.step)
                            : fmt::format("{} {}", method, bits_text(candidate.scheme));
}

/// Prints a row a candidate and a column a layer, which shows `value` of the two; brackets mark the
/// chosen one.
template <class Value>
void print_table(const std::vector<WeightSensitivity>& measured, const Allocation& allocation, Value value) {
  std::vector<std::string> labels;
  for (const WeightSensitivity& weight : measured)
    for (const MeasuredChoice& choice : weight.choices)
      if (std::ranges::find(labels, label_of(choice.candidate)) == labels.end())
        labels.push_back(label_of(choice.candidate));
  fmt::print("{:<18}", "");
  for (const WeightSensitivity& weight : measured)
    fmt::print(" {:>13}", weight.name.substr(0, weight.name.rfind('.')) + " ");
  fmt::print("\n");
  for (const std::string& label : labels) {
    fmt::print("{:<18}", label);
    for (size_t i = 0; i < measured.size(); ++i) {
      const auto& choices = measured[i].choices;
      const auto found =
          std::ranges::find(choices, label, [](const MeasuredChoice& c) { return label_of(c.candidate); });
      const std::string cell = found == choices.end() ? "-" : value(*found);
      const bool chosen = found - choices.begin() == static_cast<std::ptrdiff_t>(allocation.choices[i]);
      fmt::print(" {:>13}", chosen ? "[" + cell + "]" : cell + " ");
    }
    fmt::print("\n");
  }
}

void print_tables(const std::vector<WeightSensitivity>& measured, const Allocation& allocation) {
  fmt::print("predictions' mean divergence from float (nats), one weight compressed at a time; chosen in brackets:\n");
  print_table(measured, allocation, [](const MeasuredChoice& c) { return fmt::format("{:.5f}", c.divergence); });
  const bool compressed = measured.front().choices.front().compressed_bytes > 0;
  fmt::print("size of each choice {} (kB):\n", compressed ? "in the compressed file" : "with padding");
  print_table(measured, allocation, [&](const MeasuredChoice& c) {
    return fmt::format("{:.1f}", static_cast<double>(compressed ? c.compressed_bytes : c.stored_bytes) / 1000);
  });
  for (size_t i = 0; i < measured.size(); ++i)
    fmt::print("{:<20} {}\n", measured[i].name, to_string(measured[i].choices[allocation.choices[i]].candidate));
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

/// The allocation that changes predictions least within `file` and `resident` bytes of packed
/// weights. Sizes count in 4096ths of a limit, rounded up, which keeps the front short.
Allocation within_both(const std::vector<WeightSensitivity>& measured, const AllocationOptions& options, int64_t file,
                       int64_t resident) {
  constexpr int64_t parts = 4096;
  const auto file_bytes = [&](const MeasuredChoice& choice) {
    return options.by_compressed() ? choice.compressed_bytes : choice.stored_bytes;
  };
  const auto share = [](int64_t bytes, int64_t limit) {
    return (bytes * parts + limit - 1) / std::max(limit, int64_t{1});
  };
  int64_t smallest_file = 0, smallest_resident = 0;
  std::vector<std::vector<AllocationChoice>> layers;
  for (const WeightSensitivity& weight : measured) {
    auto& layer = layers.emplace_back();
    for (const MeasuredChoice& choice : weight.choices)
      layer.push_back({share(file_bytes(choice), file), choice.divergence, share(choice.stored_bytes, resident)});
    smallest_file += file_bytes(*std::ranges::min_element(weight.choices, {}, file_bytes));
    smallest_resident += std::ranges::min_element(weight.choices, {}, &MeasuredChoice::stored_bytes)->stored_bytes;
  }
  const auto best = best_within(allocation_front(layers), parts, parts);
  if (!best || file <= 0 || resident <= 0)
    fail<UsageError>(
        "--target-file {} and --target-resident {} cannot be met together: packed weights take at least {} in the "
        "file and {} in memory, each alone",
        options.target_file, options.target_resident, megabytes(static_cast<double>(smallest_file)),
        megabytes(static_cast<double>(smallest_resident)));
  return *best;
}

/// The allocation that changes predictions least within the targets, or for --max-loss the
/// smallest. Throws UsageError that names the smallest file or number of bits when none meets the
/// target.
Allocation choose(const AllocationOptions& options, const std::vector<WeightSensitivity>& measured,
                  const OtherBytes& others, const Verify& verify) {
  const int64_t file = static_cast<int64_t>(options.target_file * 1e6) - others.file;
  const int64_t resident = static_cast<int64_t>(options.target_resident * 1e6) - others.resident;
  if (options.target_file > 0 && options.target_resident > 0) return within_both(measured, options, file, resident);
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
  if (options.target_file > 0)
    return within(file, front, fmt::format("--target-file {}", options.target_file),
                  megabytes(static_cast<double>(smallest + others.file)));
  return within(resident, front, fmt::format("--target-resident {}", options.target_resident),
                megabytes(static_cast<double>(smallest + others.resident)));
}

}  // namespace

void AllocationOptions::add_to(CLI::App& app) {
  auto* bits =
      app.add_option("--target-bits", target_bits,
                     "Choose each layer's width so that the weights, scales included, take at most X bits on average "
                     "and the predictions change least; measured on the training images of --data")
          ->type_name("X")
          ->check(CLI::Range(1.0, 32.0));
  auto* file = app.add_option("--target-file", target_file,
                              "Choose each layer's scheme so that the file takes at most MB (10^6 bytes) and the "
                              "predictions change least: trellis strings of every rate, and linear codes of 16 step "
                              "sizes (as --range step:X), entropy-coded; implies --compress; --rate-weight counts. "
                              "With --method: each layer's width, in a plain file unless --compress is given")
                   ->type_name("MB")
                   ->check(CLI::Range(smallest_target, largest_target));
  auto* resident = app.add_option("--target-resident", target_resident,
                                  "Choose each layer's scheme so that the network takes at most MB (10^6 bytes) in "
                                  "memory (the ledger's sum; a GPU needs no more): trellis strings, kmeans and linear "
                                  "of every width. With --target-file: within both, entropy-coded codes, too. With "
                                  "--method: each layer's width")
                       ->type_name("MB")
                       ->check(CLI::Range(smallest_target, largest_target));
  auto* loss = app.add_option("--max-loss", max_loss,
                              "Choose the smallest model that loses at most POINTS of accuracy on training images that "
                              "are kept for that")
                   ->type_name("POINTS")
                   ->check(CLI::Range(0.0, 100.0));
  bits->excludes(file)->excludes(resident)->excludes(loss);
  file->excludes(loss);
  resident->excludes(loss);
  add_checked(app, "--target-images", images, positive,
              "Images that choices are measured on; as many others verify the choice");
  app.add_option("--measurements", measurements,
                 "Keep in FILE what targets and --max-loss measure: a run with another target does not measure it "
                 "again. Without it, what a stopped run measured is kept beside the output for the next run")
      ->type_name("FILE");
}

Dataset AllocationOptions::load_images(DataSource& data, const StateDict& model, int64_t calibrated) const {
  const bool held_out = trained_with_validation(model);  // no calibration sees these
  const Dataset all =
      held_out ? data.load(Split::validation, 2 * images) : data.load(Split::train, calibrated + 2 * images);
  const int64_t each = images_per_class(2 * images, all.classes.size());
  return subset(all, [&](int64_t position, int64_t size) { return position >= size - each; });
}

Rotations choose_rotations(Backend& backend, const StateDict& floats, const Dataset& images,
                           const Candidates& plain_and_rotated, const QuantizeWeight& draft, ChoiceRecord* record) {
  Network network(backend, dequantized(floats), backend.preferred_precision());
  std::vector<WeightSensitivity> measured;
  {
    Progress progress("measuring rotations", "choices");
    measured =
        measure_sensitivity(network, floats, half_of(images, true), Preprocess::for_image_size(image_size_of(floats)),
                            batch_size, plain_and_rotated, draft, MeasuredBytes::stored, std::ref(progress), record);
  }
  Rotations rotations;
  fmt::print("divergence with inputs as they are, and rotated:\n");
  for (const WeightSensitivity& weight : measured) {
    if (weight.choices.empty()) continue;
    const double plain = weight.choices[0].divergence, turned = weight.choices[1].divergence;
    if (turned < plain) rotations.weights.insert(weight.name);
    rotations.json.push_back({{"name", weight.name},
                              {"scheme", to_string(weight.choices[1].candidate.scheme)},
                              {"plain_divergence", plain},
                              {"rotated_divergence", turned},
                              {"rotated", turned < plain}});
    fmt::print("{:<20} {:.5f} {:.5f}{}\n", weight.name, plain, turned, turned < plain ? "  rotated" : "");
  }
  return rotations;
}

AllocatedWeights allocate(const AllocationOptions& options, Backend& backend, const StateDict& floats,
                          const Dataset& images, const OtherBytes& others, const Candidates& candidates,
                          const QuantizeWeight& draft, const QuantizeWeight& quantize, ChoiceRecord* record) {
  const Dataset measuring = half_of(images, true), verifying = half_of(images, false);
  const Preprocess preprocess = Preprocess::for_image_size(image_size_of(floats));
  Network network(backend, dequantized(floats), backend.preferred_precision());
  std::vector<WeightSensitivity> measured;
  {
    Progress progress("measuring choices", "choices");
    measured =
        measure_sensitivity(network, floats, measuring, preprocess, batch_size, candidates, draft,
                            options.by_compressed() ? MeasuredBytes::stored_and_compressed : MeasuredBytes::stored,
                            std::ref(progress), record);
  }

  std::optional<Progress> progress(std::in_place, "verifying: float", "images");
  AllocationVerifier verifier(network, floats, verifying, preprocess, batch_size, quantize, std::ref(*progress));
  const auto verify = [&](const Allocation& allocation) {
    progress.emplace("verifying: packed", "images");
    return verifier(chosen_candidates(measured, allocation), std::ref(*progress));
  };
  const Allocation chosen = choose(options, measured, others, verify);
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
    result.weights[weight] = quantize(floats.at(weight), candidate);
  result.json = to_json(measured, chosen, verified, options);
  result.json["split"] = to_string(trained_with_validation(floats) ? Split::validation : Split::train);
  return result;
}

}  // namespace nibblenet::tools
