#include <fmt/core.h>

#include <cmath>
#include <optional>

#include "engine/core/stopwatch.h"
#include "layers/network/class_names.h"
#include "layers/network/evaluate.h"
#include "layers/network/network.h"
#include "tools/common/command_line.h"
#include "tools/common/data_search.h"
#include "tools/common/launcher.h"
#include "tools/common/model_card.h"
#include "tools/common/model_search.h"
#include "tools/common/outputs.h"
#include "tools/common/progress.h"
#include "tools/common/rank_group.h"
#include "tools/common/report.h"
#include "tools/common/version.h"
#include "tools/training/packing.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Options : CommonOptions {
  PackingFlags packing;
  std::string data;
  bool compress = false;
  bool rewrite = false;  ///< --compress or --no-compress was given
  bool dry_run = false;
  std::string output;
  std::string card;
  double rank_timeout = 300;
  std::string words;  ///< of the command

  Compression compression() const { return compress ? Compression::rans : Compression::none; }
  /// Nothing but --compress or --no-compress: a packed model may be written again.
  bool only_rewrites() const {
    const SchemeFlags& scheme = packing.scheme;
    return rewrite && !dry_run && scheme.only_bits() && !scheme.bits && scheme.layers.empty() &&
           !packing.calibration.calibrated() && packing.calibration.ranges.empty() && !packing.allocation.given();
  }
  /// --layer alone says how: of a packed model, the layers that it names are packed anew.
  bool repacks_layers() const {
    const SchemeFlags& scheme = packing.scheme;
    return !dry_run && scheme.only_bits() && !scheme.bits && !scheme.layers.empty() && !packing.allocation.given();
  }
};

std::filesystem::path default_output(const std::filesystem::path& input, const Options& options, double bits) {
  std::string name = input.stem().string();
  const SchemeFlags& scheme = options.packing.scheme;
  if (!scheme.method.empty()) name += "_" + scheme.method;
  const bool mixed = options.packing.allocation.given() || !scheme.layers.empty();
  const std::string width = mixed ? "mixed" : fmt::format("{}bit", bits);
  return input.parent_path() / fmt::format("{}_{}.safetensors", name, width);
}

/// Prints the table of them, nothing for none.
void print_reports(const std::vector<LayerReport>& reports) {
  if (reports.empty()) return;
  fmt::print("{:<20} {:>12} {:>12} {:>8} {:>11} {:>8} {:>10} {:>12}\n", "output error", "nearest", "gptq", "ratio",
             "coded bits", "damping", "rows kept", "dead inputs");
  for (const auto& [weight, done] : reports)
    fmt::print("{:<20} {:>12.5g} {:>12.5g} {:>8.3f} {:>11.3f} {:>8.2g} {:>10} {:>12}\n", weight, done.nearest_error,
               done.error, done.nearest_error > 0 ? done.error / done.nearest_error : 1.0, done.bits, done.damping,
               done.rows_kept, done.dead_inputs);
}

/// What --card asks for: where the card goes, and the images to evaluate the model on.
struct CardWork {
  std::optional<FileClaim> claim;
  std::optional<Dataset> images;  ///< the test images of --data, with the model's labels
};

/// Reads the images and claims the card's file before the long work. Nothing without --card.
CardWork prepare_card(const Options& options, const std::filesystem::path& input, const std::filesystem::path& output,
                      const StateDict& dict) {
  if (!options.card.empty() &&
      std::filesystem::weakly_canonical(options.card) == std::filesystem::weakly_canonical(output))
    fail<UsageError>("--card {} is the packed model's own file; choose another name", options.card);
  CardWork work{.claim = claim_output("--card", options.card, OutputKind::card, {input}), .images = {}};
  if (options.card.empty() || options.data.empty()) return work;
  DataSource data = find_data(options.data, options.packing.calibration.unreadable);
  work.images = data.load(Split::test, 0);
  if (work.images->size() == 0) fail<UsageError>("--card: there are no test images in {}", options.data);
  print_match(match_classes(*work.images, dict));
  return work;
}

/// Evaluates the packed model where there are images, and writes its card. Returns the evaluation.
nlohmann::json write_card(const Options& options, const CardWork& work, Network& packed, CardFacts facts) {
  facts.ledger = packed.ledger();
  facts.file_bytes = packed.file_bytes();
  facts.header_bytes = packed.header_bytes();
  nlohmann::json json;
  if (work.images) {
    Progress progress("evaluating", "images");
    const Evaluation e =
        evaluate(packed, *work.images, Preprocess::for_image_size(facts.image_size), 128, std::ref(progress));
    progress.finish();
    facts.evaluation = {.data = work.images->description, .images = e.images, .correct = e.correct, .loss = e.loss};
    fmt::print("accuracy {:.2f} % ({} of {}), cross-entropy {:.5f}\n", 100 * e.accuracy(), e.correct, e.images, e.loss);
    json = {{"data", work.images->description},
            {"images", e.images},
            {"correct", e.correct},
            {"accuracy", e.accuracy()},
            {"loss", e.loss}};
  }
  const std::string text = model_card(facts);
  AtomicFile file(options.card);
  file.write(bytes_of(std::span<const char>(text)));
  file.commit();
  fmt::print("wrote the model card {}\n", options.card);
  return json;
}

/// The tables of the written file, read back as any tool would. `json` holds what else there is to
/// report.
void show_result(const Options& options, const std::filesystem::path& input, const std::filesystem::path& output,
                 double seconds, Backend& backend, const CardWork& card,
                 nlohmann::json json = nlohmann::json::object()) {
  StateDict dict = load_state_dict(output);
  CardFacts facts{.model = output,
                  .network = std::string(network_of(dict).title),
                  .image_size = image_size_of(dict),
                  .classes = class_names(dict.metadata, class_count(dict)),
                  .metadata = dict.metadata};
  Network packed(backend, std::move(dict));
  const auto file_bytes = static_cast<double>(packed.file_bytes());
  const AllocationOptions& targets = options.packing.allocation;
  if (targets.target_file > 0 && file_bytes > targets.target_file * 1e6)
    fail<Error>("{} became {}, more than the target", output.string(), megabytes(file_bytes));
  const auto resident = static_cast<double>(sum(packed.ledger(), "total").resident.total());
  if (targets.target_resident > 0 && resident > targets.target_resident * 1e6)
    fail<Error>("{} takes {} in memory, more than the target", output.string(), megabytes(resident));
  fmt::print("{}", size_table(packed.ledger(), packed.file_bytes(), packed.header_bytes()));
  fmt::print("packed {} into {} in {:.1f} s ({})\n", input.string(), output.string(), seconds, backend.description());
  if (!options.card.empty()) {
    json["card"] = options.card;
    json["evaluation"] = write_card(options, card, packed, std::move(facts));
  }
  json["input"] = input.string();
  json["output"] = output.string();
  json["seconds"] = seconds;
  json["compressed"] = options.compress;
  json["size"] = size_json(packed.ledger(), packed.file_bytes(), packed.header_bytes());
  print_if_standin(json.contains("data_set") && json["data_set"]["stand_in"].get<bool>());
  write_json(options.json, json);
}

/// Writes the model; encoding a large tensor takes seconds, so Ctrl-C is looked for in between.
void save(const std::filesystem::path& output, const StateDict& dict, const Options& options) {
  Progress progress("encoding", "weights");
  save_state_dict(output, dict, options.compression(), [&](int64_t done, int64_t total, const std::string& weight) {
    progress.update_or_stop(done, total, weight);
  });
}

/// Writes a packed model again with its codes compressed or not; not a bit of them changes.
void repack(const Options& options, const std::filesystem::path& input, const StateDict& dict, Backend& backend) {
  const Stopwatch watch;
  const std::filesystem::path output =
      !options.output.empty() ? std::filesystem::path(options.output)
                              : input.parent_path() / fmt::format("{}_{}.safetensors", input.stem().string(),
                                                                  options.compress ? "compressed" : "uncompressed");
  const auto claim = claim_output("-o", output, OutputKind::model, {input});
  const CardWork card = prepare_card(options, input, output, dict);
  save(output, dict, options);
  show_result(options, input, output, watch.seconds(), backend, card);
}

/// The sizes of the schemes by the formula, without looking at a weight.
void show_estimate(const Options& options, const std::filesystem::path& input, const StateDict& dict,
                   SchemeChoice& schemes) {
  constexpr const char* line = "{:<14} {:<32} {:>12} {:>8} {:>13}\n";
  fmt::print(line, "layer", "scheme", "weights", "bits/w", "estimated B");
  nlohmann::json layers = nlohmann::json::array();
  int64_t weights = 0;
  double bytes = 0;
  const auto show = [&](const std::string& layer, const std::string& scheme, int64_t count, double size) {
    fmt::print(line, layer, scheme, thousands(count), fmt::format("{:.3f}", 8 * size / static_cast<double>(count)),
               thousands(std::llround(size)));
  };
  for (const Parameter& parameter : dict.parameters) {
    if (!parameter.is_weight()) continue;
    const Scheme scheme = schemes(parameter);
    const int64_t count = parameter.shape().elements();
    const double size = estimated_size(scheme, parameter.shape()).total();
    show(parameter.name.substr(0, parameter.name.rfind('.')), to_string(scheme), count, size);
    layers.push_back({{"weight", parameter.name}, {"scheme", to_string(scheme)}, {"estimated", size}});
    weights += count;
    bytes += size;
  }
  show("total", "", weights, bytes);
  fmt::print("estimated by the formula for {}; nothing was packed or written\n", input.string());
  write_json(options.json, {{"input", input.string()}, {"dry_run", true}, {"estimated", bytes}, {"layers", layers}});
}

/// What all ranks must have in common, beside the images, so that they pack one model.
RankGroup::Facts facts_of(const Options& options, const std::filesystem::path& input, const Backend& backend) {
  RankGroup::Facts facts = {{"build", version_json().dump()},
                            {"command", options.words},
                            {"device", backend.description()},
                            {"model", fingerprint_of_file(input)}};
  const std::string& calibration = options.packing.calibration.load;
  if (!calibration.empty()) facts.emplace_back("calibration", fingerprint_of_file(calibration));
  return facts;
}

/// Says what is left of a run that was stopped while it measured for a target.
[[noreturn]] void stopped_measuring(const std::filesystem::path& measurements) {
  std::error_code error;
  if (!std::filesystem::exists(measurements, error)) throw Stopped("stopped; nothing was written");
  fail<Stopped>("stopped; what was measured is in {}, and the same command goes on from there", measurements.string());
}

void pack(Options& options, RankGroup& group) {
  share_machine(options.device);
  PackingFlags& flags = options.packing;
  flags.validate();
  if (options.dry_run && flags.allocation.given())
    throw UsageError("--dry-run: what targets and --max-loss choose is not known before it is measured");
  if (options.dry_run && !options.card.empty()) throw UsageError("--dry-run writes nothing: leave --card out");
  const auto backend = options.device.make();

  const std::filesystem::path input = find_model(options.model, ModelKind::fine_tuned);
  StateDict dict = load_model(input, options.checksums);
  if (group.several() != nullptr && (dict.packed() || options.dry_run))
    throw UsageError("there is no work here for several processes: start pack without mpirun or srun");
  if (dict.packed() && options.only_rewrites()) return repack(options, input, dict, *backend);
  std::optional<StateDict> packed;
  if (dict.packed()) {
    if (!options.repacks_layers())
      fail<UsageError>(
          "{} is packed already; pack the float model it came from, or tools/export it first; --layer alone packs some "
          "layers anew",
          input.string());
    packed = std::move(dict);
    dict = dequantized(*packed);
  }
  SchemeChoice schemes(flags.scheme, flags.calibration.uses_gptq(), dict);
  const std::filesystem::path output =
      options.output.empty() ? default_output(input, options, schemes.bits()) : std::filesystem::path(options.output);

  flags.expect_fit(dict);  // before the long work
  if (options.dry_run) return show_estimate(options, input, dict, schemes);
  const std::optional<FileClaim> claim =
      group.first() ? claim_output("-o", output, OutputKind::model, {input, flags.calibration.load}) : std::nullopt;
  const CardWork card = group.first() ? prepare_card(options, input, output, dict) : CardWork();
  std::string& measurements = flags.allocation.measurements;
  const bool keeps_measurements = !measurements.empty();
  if (flags.allocation.given() && !keeps_measurements) measurements = output.string() + ".measurements.json";

  const Stopwatch watch;
  std::optional<PackingRanks> together;
  if (group.several() != nullptr) together.emplace(PackingRanks{group, facts_of(options, input, *backend)});
  PackingReport report;
  try {
    report = pack_by_flags(flags, dict, input, options.data, *backend, packed ? &*packed : nullptr,
                           together ? &*together : nullptr);
  } catch (const Interrupted&) {
    stopped_measuring(measurements);
  } catch (const Stopped&) {
    stopped_measuring(measurements);
  }
  if (!group.first()) return;
  save(output, dict, options);
  const double seconds = watch.seconds();
  print_reports(report.layers);
  for (const std::string& line : report.lines) fmt::print("{}\n", line);
  show_result(options, input, output, seconds, *backend, card, std::move(report.json));
  std::error_code error;
  if (!keeps_measurements && !measurements.empty()) std::filesystem::remove(measurements, error);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Stores the weights of a float model as packed n-bit codes; biases stay float32. Of a packed MODEL, --layer "
      "alone "
      "packs the layers that it names anew, and the others keep their codes.",
      "pack");
  Options options;
  app.add_option("MODEL", options.model,
                 fmt::format("Float model ({}); without it the newest one in weights/", model_files));
  options.packing.scheme.add_to(app);
  app.add_option("-o,--output", options.output,
                 "Packed model; default: beside MODEL, its name with _<METHOD> if --method is given, and _<bits>bit, "
                 "or _mixed with --layer, a target or --max-loss")
      ->type_name("FILE");
  options.packing.calibration.add_source_to(app);
  options.packing.calibration.add_choice_to(app);
  options.packing.allocation.add_to(app);
  app.add_option("--data", options.data,
                 std::string("Training images for targets, --max-loss and what int8 and bfloat16 cost (default: those "
                             "of --calibrate), and test images for --card. ") +
                     data_help)
      ->type_name("PATH");
  auto* compress = app.add_flag(
      "--compress,!--no-compress", options.compress,
      "Entropy-code the codes (rANS, no loss): a smaller file, decoded on loading, so that the resident size stays the "
      "same. On a packed MODEL, --compress or --no-compress alone rewrites it with the same codes; its default output "
      "is MODEL's name with _compressed or _uncompressed");
  app.add_option(
         "--card", options.card,
         "Write a model card, README.md in Hugging Face's form: sizes, how the model was made and, with --data, "
         "its accuracy on the test images there")
      ->type_name("FILE");
  app.add_flag("--dry-run", options.dry_run,
               "Print the scheme and the size by the formula of every layer; write nothing");
  options.add_to(app);
  add_rank_timeout(app, options.rank_timeout);
  options.words = words_of(argc, argv);
  let_first_rank_speak();
  return run_long_tool(app, argc, argv, [&] {
    options.rewrite = compress->count() > 0;
    if (options.packing.implies_compression()) options.compress = true;
    options.packing.allocation.compressed = options.compress;
    run_on_ranks(options.rank_timeout, OnStop::end_all, [&](RankGroup& group) { pack(options, group); });
  });
}
