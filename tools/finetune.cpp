#include <fmt/chrono.h>
#include <fmt/ranges.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <ctime>
#include <numeric>
#include <optional>
#include <thread>

#include "engine/core/threads.h"
#include "engine/io/holdout.h"
#include "layers/network/class_names.h"
#include "tools/common/command_line.h"
#include "tools/common/data_search.h"
#include "tools/common/launcher.h"
#include "tools/common/model_search.h"
#include "tools/common/outputs.h"
#include "tools/common/pretrained.h"
#include "tools/common/rank_group.h"
#include "tools/common/report.h"
#include "tools/common/version.h"
#include "tools/training/quantized_training.h"
#include "tools/training/rank_exchange.h"
#include "tools/training/recipe_options.h"
#include "tools/training/training_run.h"
#include "training/compression/calibration.h"
#include "training/epoch_json.h"
#include "training/first_filters.h"
#include "training/parallel/processor.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Options {
  std::string data;
  std::string init = "random";
  std::string network;  ///< of --init random; empty: the first there is
  std::string freeze;
  std::string reset;
  std::string schedule = "constant";
  std::string augment = "none";
  std::string learn = "all";
  std::string precision = "float32";
  std::string resume;
  std::string output;
  std::string json;
  std::string first_filters = "random";
  std::string teacher;
  double teacher_weight = 1;
  double checkpoint_seconds = 120;
  double rank_timeout = 300;
  std::string reduce = "exact";
  std::string exchange = "auto";
  bool fetch = false;
  bool other_images = false;  ///< resumes on images that are not the checkpoint's
  Unreadable unreadable = Unreadable::refuse;
  Checksums checksums = Checksums::warn;
  DeviceOptions device;
  QuantizedTrainingFlags quantize;
  PruningFlags prune;
  TrainingOptions training;

  bool fast() const { return reduce == "fast"; }
};

/// The file of --init, downloaded first where it is a published model.
struct InitialModel {
  std::filesystem::path file;
  bool published = false;
};

InitialModel find_initial_model(const Options& options) {
  if (const auto published = find_published(options.init)) {
    if (!options.network.empty() && network_named(options.network).published != options.init)
      fail<UsageError>("--init {}: there are no such weights of {}; name a file, or take --init random", options.init,
                       options.network);
    return {obtain(*published), true};
  }
  check_hash_in_name(options.init);
  return {options.init, false};
}

std::filesystem::path checkpoint_of(const std::filesystem::path& output) {
  return output.parent_path() / (output.stem().string() + ".checkpoint.safetensors");
}

/// The name the original notebooks give; packed models say that they are trained as such. Claimed:
/// where another run of this second has it, a number is added.
std::filesystem::path default_output(const NetworkSpec& network, bool packed, std::optional<FileClaim>& claim) {
  const std::filesystem::path folder = project_root() / "weights";
  std::filesystem::create_directories(folder);
  const std::string name = fmt::format("model_{:%Y%m%d_%H%M%S}_final_frozen_{}{}", fmt::localtime(std::time(nullptr)),
                                       network.name, packed ? "_qat" : "");
  for (int number = 1;; ++number) {
    const std::filesystem::path output =
        folder / fmt::format("{}{}.safetensors", name, number == 1 ? "" : fmt::format("_{}", number));
    std::optional<FileClaim> own = FileClaim::try_claim(output);
    if (!own || std::filesystem::exists(output) || std::filesystem::exists(checkpoint_of(output))) continue;
    claim.emplace(std::move(*own));
    return output;
  }
}

/// x.checkpoint.safetensors continues into x.safetensors.
std::filesystem::path output_of(const std::filesystem::path& checkpoint, const NetworkSpec& network, bool packed,
                                std::optional<FileClaim>& claim) {
  const std::string stem = checkpoint.stem().string();
  constexpr std::string_view suffix = ".checkpoint";
  if (!stem.ends_with(suffix)) return default_output(network, packed, claim);
  return checkpoint.parent_path() / (stem.substr(0, stem.size() - suffix.size()) + ".safetensors");
}

/// An output that cannot be written is reported now, not after hours of training.
void prepare_output(const std::filesystem::path& output) {
  std::error_code error;
  if (std::filesystem::exists(output, error) && !std::filesystem::is_regular_file(output, error))
    fail<IoError>("cannot write {}: it is no ordinary file; choose another name", output.string());
  if (const auto longest = checkpoint_of(output); longest.filename().native().size() > NAME_MAX)
    fail<UsageError>("--out {}: {} would be too long a name; choose a shorter one", output.string(), longest.string());
  const std::filesystem::path folder = output.has_parent_path() ? output.parent_path() : ".";
  std::filesystem::create_directories(folder, error);
  if (!error && access(folder.c_str(), W_OK) != 0) error.assign(errno, std::generic_category());
  if (error) fail<IoError>("cannot write into {}: {}; choose another --out", folder.string(), error.message());
}

/// Training, validation and test images, and what became of their labels so that they are the
/// model's.
struct Images {
  Dataset train;
  Dataset validation;  ///< without --validation it is empty
  Dataset test;
  bool asked_for = false;
  std::string match;

  int64_t classes() const { return static_cast<int64_t>(train.classes.size()); }
  /// Both splits, or none where one does not fit.
  void match_with(const StateDict& model) {
    Dataset labels_of_test{.description = test.description, .classes = test.classes, .labels = test.labels};
    match_classes(labels_of_test, model, asked_for);
    match = match_classes(train, model, asked_for);
    if (validation.size() > 0) match_classes(validation, model, asked_for);
    match_classes(test, model, asked_for);
    print_match(match);
  }
};

Reset chosen_reset(const Options& options, const StateDict& parameters, bool published, Images& images) {
  if (options.reset == "classifier") return Reset::classifier;
  if (options.reset == "tail" || (options.reset.empty() && published)) return Reset::tail;
  try {
    images.match_with(parameters);
    return Reset::none;
  } catch (const UsageError& error) {
    if (options.reset == "none") fail<UsageError>("--reset none: {}; or use --reset tail", error.what());
    if (images.train.stand_in() && !images.asked_for) throw;
    fmt::print("the head does not fit: {}: re-initialising the tail\n", error.what());
    return Reset::tail;
  }
}

/// What has learnt from the images that are held out now makes them look like training images.
void warn_if_held_out_were_seen(const StateDict& model, std::string_view flag, const std::string& file) {
  if (!model.metadata.contains("training_options") || model.metadata.contains(validation_key)) return;
  fmt::print(stderr,
             "warning: {} {} was trained without --validation, so on the images that are held out now: accuracy on "
             "them looks better than it is\n",
             flag, file);
}

StateDict initial_parameters(Options& options, const InitialModel& initial, bool image_size_given, Images& images) {
  if (initial.file.empty()) {
    const NetworkSpec& network = options.network.empty() ? networks().front() : network_named(options.network);
    return random_network(network, images.classes(), options.training.seed);
  }
  StateDict parameters = load_model(initial.file, options.checksums);
  const bool reset_all = options.reset == "all";
  if (options.training.validation && !reset_all)
    warn_if_held_out_were_seen(parameters, "--init", initial.file.string());
  if (const NetworkSpec& network = network_of(parameters); !options.network.empty() && options.network != network.name)
    fail<UsageError>("--network {}: {} holds {}", options.network, initial.file.string(), network.title);
  if (!image_size_given) options.training.image_size = image_size_of(parameters);
  if (parameters.packed() && (!options.quantize.given() || reset_all)) {
    if (!reset_all) fmt::print("{} is packed: training starts from its dequantized weights\n", initial.file.string());
    parameters = dequantized(parameters);
  }
  if (reset_all) {
    parameters.metadata.clear();
    draw_all_layers(parameters, images.classes(), options.training.seed);
    return parameters;
  }
  const Reset reset = chosen_reset(options, parameters, initial.published, images);
  parameters.metadata.clear();
  reset_head(parameters, reset, images.classes(), options.training.seed);
  return parameters;
}

TrainingStart start_from(Options& options, const InitialModel& initial, bool image_size_given, Images& images,
                         Backend& backend) {
  StateDict parameters = initial_parameters(options, initial, image_size_given, images);
  TrainingOptions& training = options.training;
  const NetworkSpec& network = network_of(parameters);
  expect_image_size(network, training.image_size);
  if (training.recipe.whitened)
    whiten_first_filters(parameters, images.train, Preprocess::for_image_size(training.image_size), training.seed);
  training.pruning.layers = options.prune.fractions(network, training.freeze_features);
  return options.quantize.start_from(std::move(parameters), training.freeze_features, training.learned, backend);
}

/// The network that --distill names, or that a checkpoint goes on with; none where there is no
/// teacher.
std::optional<Network> load_teacher(DistillationOptions& options, Checksums checksums, Backend& backend,
                                    const Network& student, const std::vector<std::string>& classes, bool validation) {
  if (options.teacher.empty()) return std::nullopt;
  give_key(options.key);  // of the run that a checkpoint goes on with
  StateDict parameters = load_model(options.teacher, checksums);
  if (validation) warn_if_held_out_were_seen(parameters, "--distill", options.teacher);
  options.key = key_for(options.teacher);
  if (class_count(parameters) != student.classes())
    fail<UsageError>("--distill {}: it tells {} classes apart, the network {}", options.teacher,
                     class_count(parameters), student.classes());
  Dataset one_of_each{.classes = classes, .labels = std::vector<uint8_t>(classes.size())};
  std::iota(one_of_each.labels.begin(), one_of_each.labels.end(), uint8_t{0});
  try {
    match_classes(one_of_each, parameters);
  } catch (const UsageError& error) {
    fail<UsageError>("--distill {}: {}", options.teacher, error.what());
  }
  if (!std::ranges::is_sorted(one_of_each.labels))
    fail<UsageError>("--distill {}: its classes are the network's in another order", options.teacher);
  const std::string fingerprint =
      parameters.packed() ? fingerprint_of(dequantized(parameters)) : fingerprint_of(parameters);
  if (!options.fingerprint.empty() && options.fingerprint != fingerprint)
    fail<UsageError>("{} is not the model that the checkpoint learnt from: put that one there again", options.teacher);
  options.fingerprint = fingerprint;
  options.teacher = std::filesystem::absolute(options.teacher).string();  // for a resumed run elsewhere
  return std::optional<Network>(std::in_place, backend, std::move(parameters), student.precision());
}

/// Flags whose default depends on the file that training starts from.
struct Given {
  bool epochs;
  bool patience;
  bool image_size;
};

/// The images of a resumed run are those of its checkpoint, unless --data names others.
DataSource find_images(const Options& options, const std::optional<Checkpoint>& checkpoint) {
  std::error_code error;
  const char* variable = std::getenv("NIBBLENET_DATA");
  const bool named = !options.data.empty() || (variable != nullptr && *variable != '\0');
  if (named || !checkpoint || checkpoint->source.data.empty()) return find_data(options.data, options.unreadable);
  if (!std::filesystem::exists(checkpoint->source.data, error))
    fail<UsageError>("--resume {}: its images lay at {} and are gone; say with --data where they are now",
                     options.resume, checkpoint->source.data);
  return find_data(checkpoint->source.data, options.unreadable);
}

std::string fingerprint_of(const Images& images) {
  return nibblenet::fingerprint_of(images.train) + nibblenet::fingerprint_of(images.test) +
         (images.validation.size() > 0 ? nibblenet::fingerprint_of(images.validation) : "");
}

/// The training images first: they choose where all are read from.
Images load_images(DataSource& data, const TrainingOptions& training) {
  Images images{.asked_for = data.asked_for()};
  images.train = data.load(Split::train, training.validation ? 0 : training.train_limit);
  if (training.validation) {
    images.validation = part_of(images.train, Split::validation, training.test_limit);
    images.train = part_of(images.train, Split::fitting, training.train_limit);
  }
  images.test = data.load(Split::test, training.test_limit);
  if (images.train.size() == 0 || images.test.size() == 0)
    fail<UsageError>("{} has no {} images", data.path().string(), images.train.size() == 0 ? "training" : "test");
  return images;
}

/// What choosing by the validation images came to; null without them.
nlohmann::json validation_json(const Trainer& trainer, const TrainingOptions& options, const Images& images) {
  if (!options.validation) return nullptr;
  const TrainingPosition& position = trainer.position();
  const EpochScore best = position.history.at(static_cast<size_t>(position.best) - 1).measured();
  const int64_t held_out = images.validation.size();
  const Interval interval = wilson_interval(std::llround(best.accuracy * static_cast<double>(held_out)), held_out);
  return {{"images", held_out},        {"best_epoch", position.best},
          {"accuracy", best.accuracy}, {"accuracy_interval", {interval.low, interval.high}},
          {"loss", best.loss},         {"ended_early", position.epoch < options.epochs}};
}

/// Loss and accuracy on the test images of the model that is written.
EpochScore test_score(const Trainer& trainer) {
  if (trainer.tested()) return {.loss = trainer.tested()->loss, .accuracy = trainer.tested()->accuracy()};
  return trainer.position().history.back().measured();
}

void print_choice(const nlohmann::json& validation, const Evaluation& tested) {
  const Interval interval = wilson_interval(tested.correct, tested.images);
  fmt::print(
      "epoch {} is the best: {:.2f} % of {} validation images (95 % interval {:.2f} to {:.2f} %); tested once, its "
      "weights have {:.2f} % of {} test images ({:.2f} to {:.2f} %)\n",
      validation.at("best_epoch").get<int64_t>(), 100 * validation.at("accuracy").get<double>(),
      validation.at("images").get<int64_t>(), 100 * validation.at("accuracy_interval").at(0).get<double>(),
      100 * validation.at("accuracy_interval").at(1).get<double>(), 100 * tested.accuracy(), tested.images,
      100 * interval.low, 100 * interval.high);
}

/// Throws UsageError for other images than the checkpoint's, unless they are insisted on; says what
/// else makes the result that of another run.
void check_source(const Options& options, const TrainingSource& before, const TrainingSource& now) {
  if (before.fingerprint.empty()) return;
  if (before.fingerprint != now.fingerprint && !options.other_images)
    fail<UsageError>(
        "--resume {}: {} holds other images than those that it was trained on, which lay at {}: give these with "
        "--data, or --other-images to go on with the others",
        options.resume, now.data, before.data);
  std::string changed;
  if (before.fingerprint != now.fingerprint) changed = "other images";
  if (before.device != now.device)
    changed += fmt::format("{}{} in place of {}", changed.empty() ? "" : ", ", now.device, before.device);
  else if (before.threads != now.threads && now.device == "cpu")
    changed += fmt::format("{}{} threads in place of {}", changed.empty() ? "" : ", ", now.threads, before.threads);
  if (!changed.empty()) fmt::print("resumes with {}: the result may differ in bits from an unstopped run\n", changed);
}

/// The whole command that goes on with a checkpoint.
std::string resume_command(const Options& options, const TrainingSource& source,
                           const std::filesystem::path& checkpoint) {
  std::string command =
      fmt::format("tools/finetune --resume {} --data {}", shell_quoted(checkpoint.string()), shell_quoted(source.data));
  if (options.device.device != "auto") command += " --device " + options.device.device;
  if (source.threads > 0 && source.device == "cpu") command += fmt::format(" --threads {}", source.threads);
  if (options.other_images) command += " --other-images";
  if (options.unreadable == Unreadable::skip) command += " --skip-unreadable";
  if (options.checkpoint_seconds != 120) command += fmt::format(" --checkpoint-every {}", options.checkpoint_seconds);
  if (!options.output.empty()) command += " --out " + shell_quoted(options.output);
  if (!options.json.empty()) command += " --json " + shell_quoted(options.json);
  return command;
}

/// The files that a run writes, claimed against other runs. Without names on ranks that write none.
struct Outputs {
  std::filesystem::path model;
  std::filesystem::path checkpoint;
  std::vector<FileClaim> claims;
};

Outputs claim_outputs(const Options& options, const InitialModel& initial, bool resumed, const NetworkSpec& network,
                      bool packed) {
  std::optional<FileClaim> claim;
  Outputs outputs;
  outputs.model = !options.output.empty() ? std::filesystem::path(options.output)
                  : resumed               ? output_of(options.resume, network, packed, claim)
                                          : default_output(network, packed, claim);
  outputs.checkpoint = checkpoint_of(outputs.model);
  prepare_output(outputs.model);
  std::optional<FileClaim> given =
      claim ? std::nullopt
            : claim_output("--out", outputs.model, OutputKind::model,
                           {initial.file, options.resume, options.training.distillation.teacher});
  for (auto* own : {&claim, &given})
    if (*own) outputs.claims.push_back(std::move(**own));
  outputs.claims.push_back(claim_file("the checkpoint of --out", outputs.checkpoint));
  expect_replaceable(outputs.checkpoint, options.resume);
  return outputs;
}

constexpr int64_t default_blocks = 32;  ///< under a launcher

/// Under a launcher, batches go by blocks, and the ranks of a machine share its cores.
void take_launcher(Options& options, bool resumed, const RankGroup& group) {
  const std::optional<Launched> own = launched();
  if (!own && options.fast())
    throw UsageError("--reduce fast is for several processes: start them with mpirun or srun");
  if (!own) return;
  TrainingOptions& training = options.training;
  if (options.fast()) {
    if (training.blocks > 0)
      fail<UsageError>("--reduce fast: {} promised the same bits for any number of ranks: leave --reduce out",
                       resumed ? "the run of " + options.resume : "--blocks");
    if (training.batch_size < group.size())
      fail<UsageError>("--batch {} has fewer images than there are ranks, {}", training.batch_size, group.size());
  }
  if (resumed && training.blocks == 0 && !options.fast())
    fail<UsageError>(
        "--resume {}: that run had no --blocks, so it goes on in one process alone: start it without mpirun or srun, "
        "or add --reduce fast",
        options.resume);
  if (training.blocks == 0 && !options.fast()) training.blocks = default_blocks;
  const int64_t blocks = options.fast() ? group.size() : (training.batch_size + training.blocks - 1) / training.blocks;
  if (blocks < group.size())
    fail<UsageError>("--batch {} has {} blocks of {} images, fewer than {} ranks: lower --blocks, or start fewer",
                     training.batch_size, blocks, training.blocks, group.size());
  share_machine(options.device);
}

/// What all ranks must have in common, so that they train one network.
RankGroup::Facts facts_of(const Options& options, const Backend& backend, const TrainingSource& source,
                          const TrainingStart& start, const TrainingPosition& position) {
  RankGroup::Facts facts = {{"build", version_json().dump()},
                            {"--reduce", options.reduce},
                            {"--exchange", options.exchange},
                            {"--device", backend.name()}};
  if (!options.fast())
    facts.emplace_back("processor", backend.device_id() ? processor_of_blocks(backend) : processor_of_blocks());
  const nlohmann::json settings = nlohmann::json::parse(to_json(options.training));
  for (const auto& [name, value] : settings.items()) facts.emplace_back(name, value.dump());
  facts.emplace_back("data set", source.fingerprint);
  facts.emplace_back("model", fingerprint_of(start.parameters) +
                                  (start.packed.packed() ? fingerprint_of(dequantized(start.packed)) : ""));
  facts.emplace_back("step to begin with", std::to_string(position.step));
  return facts;
}

void finetune(Options& options, Given given, RankGroup& group) {
  const bool from_model = options.resume.empty() && options.init != "random";
  const InitialModel initial = from_model ? find_initial_model(options) : InitialModel{};
  if (options.fetch) return;
  std::optional<Checkpoint> checkpoint;
  if (!options.resume.empty()) checkpoint = load_checkpoint(options.resume);
  DataSource data = find_images(options, checkpoint);
  if (checkpoint) {
    const TrainingOptions asked = options.training;
    options.training = checkpoint->options;
    if (given.epochs) options.training.epochs = asked.epochs;
    if (given.patience) options.training.patience = asked.patience;
  }
  take_launcher(options, checkpoint.has_value(), group);
  validate(options.training);
  const bool in_blocks = options.training.blocks > 0 || options.fast();
  if (in_blocks && options.device.device == "cudnn")
    throw UsageError("--device cudnn: its bits change from run to run; blocks and ranks train on cpu or cuda");
  if (!in_blocks && options.exchange != "auto")
    throw UsageError("--exchange is for ranks: start them with mpirun or srun, or give --blocks");
  expect_exchange(options.exchange, options.device);
  Images images = load_images(data, options.training);
  const Dataset &train_set = images.train, &test_set = images.test;

  const auto backend = options.device.make();
  if (checkpoint) images.match_with(checkpoint->parameters);
  const TrainingSource source{.data = std::filesystem::absolute(data.path()).string(),
                              .fingerprint = fingerprint_of(images),
                              .device = std::string(backend->name()),
                              .threads = options.training.blocks > 0 ? 0 : omp_get_max_threads()};
  if (checkpoint) check_source(options, checkpoint->source, source);
  TrainingStart start = checkpoint ? TrainingStart{std::move(checkpoint->parameters), std::move(checkpoint->packed)}
                                   : start_from(options, initial, given.image_size, images, *backend);
  RankGroup::Facts facts;
  if (group.size() > 1)
    facts = facts_of(options, *backend, source, start, checkpoint ? checkpoint->position : TrainingPosition());
  const bool packed = start.packed.packed();
  Network network = Network::for_training(*backend, std::move(start.parameters), options.training.precision);
  std::optional<Network> teacher = load_teacher(options.training.distillation, options.checksums, *backend, network,
                                                train_set.classes, options.training.validation);
  Trainer trainer(network, train_set, test_set, options.training,
                  options.training.validation ? &images.validation : nullptr);
  if (teacher) trainer.learn_from(*teacher);
  if (packed) trainer.quantize(std::move(start.packed));
  if (checkpoint) trainer.restore(*checkpoint);
  trainer.note_source(source);

  Outputs outputs;
  if (group.first()) outputs = claim_outputs(options, initial, checkpoint.has_value(), network.spec(), packed);
  const std::filesystem::path& output = outputs.model;
  group.agree(facts);
  const std::unique_ptr<Exchange> exchange = in_blocks ? make_exchange(options.exchange, *backend, group) : nullptr;
  if (options.training.blocks > 0) trainer.by_blocks(omp_get_max_threads(), group.ranks(), exchange.get());
  if (options.fast()) trainer.by_shares(omp_get_max_threads(), group.ranks(), exchange.get());
  fmt::print("{}: {} training{} and {} test images, {} classes; features {}, {}{}\n", train_set.description,
             train_set.size(),
             options.training.validation ? fmt::format(", {} validation", images.validation.size()) : "",
             test_set.size(), train_set.classes.size(), options.training.freeze_features ? "frozen" : "trained",
             backend->description(), teacher ? "; learns from " + options.training.distillation.teacher : "");
  if (exchange) fmt::print("ranks exchange gradients by {}\n", exchange->name());
  if (options.fast())
    fmt::print("--reduce fast: other numbers of ranks or threads, and another MPI, give other bits\n");
  std::fflush(stdout);
  const std::filesystem::path& saved = outputs.checkpoint;
  const auto save_model = [&] {
    StateDict result = trainer.model();
    result.metadata[image_size_key] = std::to_string(options.training.image_size);
    TrainingOptions told = options.training;  // a model that travels need not say where files lie here
    told.distillation.teacher = std::filesystem::path(told.distillation.teacher).filename().string();
    result.metadata["training_options"] = to_json(told);
    if (options.training.validation)
      result.metadata[validation_key] =
          fmt::format("{} training images held out; they chose epoch {} of {}", images.validation.size(),
                      trainer.position().best, trainer.position().epoch);
    if (static_cast<int64_t>(train_set.classes.size()) == network.classes())
      result.metadata[class_names_key] = class_names_text(train_set.classes);
    save_state_dict(output, result);
  };
  train(trainer, options.training, saved, options.checkpoint_seconds, resume_command(options, source, saved),
        save_model);
  trainer.collect();
  if (!group.first()) return;

  save_model();
  const auto& history = trainer.position().history;
  const nlohmann::json validation = validation_json(trainer, options.training, images);
  if (trainer.tested()) print_choice(validation, *trainer.tested());
  const EpochScore test = test_score(trainer);
  const nlohmann::json sparsity = show_sparsity(trainer, options.training.pruning.enabled);
  fmt::print("wrote {} (test accuracy {:.2f} %); next: tools/{}\n", output.string(), 100 * test.accuracy,
             fmt::format(fmt::runtime(packed ? "eval {}" : "pack {} --bits 4"), output.string()));
  const LossScale& scale = trainer.position().loss_scale;
  if (options.training.precision == Precision::float16)
    fmt::print("loss scale at the end: {:g}; {} of {} steps skipped\n", scale.value, scale.skipped,
               trainer.position().step);
  const size_t peak_bytes = backend->meter().peak_total() + trainer.peak_bytes_of_blocks();
  fmt::print("peak memory of the backend: {}\n", megabytes(static_cast<double>(peak_bytes)));
  nlohmann::json data_set = data_set_json(train_set, images.match);
  data_set["skipped"] = train_set.skipped.size() + test_set.skipped.size();
  write_json(options.json, {{"output", output.string()},
                            {"checkpoint", saved.string()},
                            {"device", backend->name()},
                            {"data", train_set.description},
                            {"data_set", std::move(data_set)},
                            {"train_images", train_set.size()},
                            {"test_images", test_set.size()},
                            {"options", nlohmann::json::parse(to_json(options.training))},
                            {"epochs", history},
                            {"validation", validation},
                            {"test_accuracy", test.accuracy},
                            {"test_loss", test.loss},
                            {"packed", packed},
                            {"loss_scale", scale.value},
                            {"skipped_steps", scale.skipped},
                            {"sparsity", sparsity},
                            {"peak_bytes", peak_bytes}});
  trainer.save_checkpoint(saved);  // last: it takes more room than the model
  fmt::print("the checkpoint stays: {}, {:.1f} MB; only --resume with more --epochs needs it\n", saved.string(),
             static_cast<double>(std::filesystem::file_size(saved)) / 1e6);
  print_if_standin(train_set.stand_in());
}

/// Flags that a checkpoint has already settled.
void refuse_with_resume(const CLI::App& app) {
  for (const char* name :
       {"--init",           "--network",       "--freeze",      "--reset",           "--batch",     "--lr",
        "--momentum",       "--weight-decay",  "--dropout",     "--schedule",        "--augment",   "--image-size",
        "--seed",           "--train-limit",   "--test-limit",  "--validation",      "--quantize",  "--layer",
        "--prune",          "--prune-scope",   "--prune-layer", "--prune-until",     "--precision", "--distill",
        "--distill-weight", "--learn",         "--ema",         "--label-smoothing", "--mixup",     "--cutmix",
        "--bias-lr",        "--first-filters", "--blocks"})
    if (app.get_option(name)->count() > 0)
      fail<UsageError>("{} cannot be changed with --resume: the checkpoint has settled it", name);
}

void learn_scales(const CLI::App& app, Options& options) {
  if (!options.quantize.given()) throw UsageError("--learn scales needs --quantize");
  for (const char* name : {"--momentum", "--weight-decay"})
    if (app.get_option(name)->count() > 0) fail<UsageError>("{} is SGD's: not with --learn scales", name);
  options.training.learned = Learned::scales;
  if (app.get_option("--lr")->count() == 0) options.training.learning_rate = 0.003;
}

/// "AlexNet: classifier.4, classifier.6": what --reset tail makes anew in each network.
std::string tails() {
  std::string text;
  for (const NetworkSpec& network : networks()) {
    std::vector<std::string> names = classifier_names(network);
    names.erase(names.begin(), names.end() - network.tail);
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", network.title, fmt::join(names, ", "));
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a network by SGD: fine-tunes a model's classifier, or everything, from a file or from scratch.",
               "finetune");
  Options options;
  TrainingOptions& t = options.training;
  app.add_option("--data", options.data, data_help)->type_name("PATH");
  add_skip_option(app, options.unreadable);
  app.add_option(
         "--init", options.init,
         fmt::format("random; imagenet: torchvision's weights, downloaded into weights/ once, with a new tail of "
                     "the classifier; or a model to start from ({})",
                     model_files))
      ->type_name("random|imagenet|FILE")
      ->capture_default_str();
  app.add_flag("--fetch", options.fetch, "Only download and check what --init names");
  std::vector<std::string> names;
  for (const NetworkSpec& network : networks()) names.emplace_back(network.name);
  app.add_option("--network", options.network,
                 fmt::format("The network of --init random: {}; that of a model to start from is found by its "
                             "parameters",
                             fmt::join(names, ", ")))
      ->check(CLI::IsMember(names))
      ->default_str(names.front());
  add_strict_option(app, options.checksums);
  app.add_option("--freeze", options.freeze,
                 "features: train the classifier only (default with --init); none: train everything (default from "
                 "random and with --reset all)")
      ->check(CLI::IsMember({"features", "none"}));
  app.add_option(
         "--reset", options.reset,
         "Re-initialise nothing, the tail (" + tails() +
             "), the whole classifier, or all layers, which takes nothing but the sizes from the file; default: "
             "the tail with --init imagenet and when the head does not "
             "fit, else none")
      ->check(CLI::IsMember({"none", "tail", "classifier", "all"}));
  add_checked(
      app, "--first-filters", options.first_filters, CLI::IsMember({"random", "whitened"}),
      "The first convolution of --init random or --reset all; whitened: eigenvectors of patches of the training "
      "images, over the roots of their eigenvalues, and the same negated");
  auto* epochs = app.add_option("--epochs", t.epochs, "Passes over the training images")->capture_default_str();
  app.add_option("--batch", t.batch_size, "Images a step")->capture_default_str();
  app.add_option("--lr", t.learning_rate, "Learning rate")->capture_default_str();
  app.add_option("--momentum", t.momentum, "Momentum")->capture_default_str();
  app.add_option("--weight-decay", t.weight_decay, "Weight decay (L2)")->capture_default_str();
  app.add_option("--dropout", t.dropout, "Dropout probability between linear layers (the original notebooks: 0)")
      ->capture_default_str();
  app.add_option("--schedule", options.schedule, "How the learning rate changes over the epochs")
      ->type_name("constant|cosine|warmup|warmup-cosine")
      ->capture_default_str();
  add_checked(
      app, "--augment", options.augment, CLI::IsMember({"flip", "flip-shift", "flip-shift-cut", "none"}),
      "flip: mirror half of the training images, at random; flip-shift: also move each by up to an eighth of its "
      "side, which leaves black behind; flip-shift-cut: also hide a square of half its side; none");
  add_checked(
      app, "--precision", options.precision, CLI::IsMember({"float32", "float16"}),
      "float16: mixed precision, with activations and their gradients in float16 on the tensor cores, weights and "
      "momenta in float32, and an automatic loss scale; needs --device cuda");
  auto* image_size = app.add_option("--image-size", t.image_size,
                                    "Input pixels; default: what the --init model was trained with, else 224")
                         ->capture_default_str();
  app.add_option("--seed", t.seed, "Seed of initialisation, order, dropout and augmentation")->capture_default_str();
  app.add_option("--train-limit", t.train_limit, "Train on the first N/classes images of every class; 0: all")
      ->capture_default_str();
  app.add_option("--test-limit", t.test_limit,
                 "Test on the first N/classes images of every class, and validate on as many; 0: all")
      ->capture_default_str();
  app.add_flag("--validation", t.validation,
               "Choose without the test images: hold out a tenth of the training images of every class, always the "
               "same ones, measure every epoch on these, write the best epoch's weights, and test once, at the end");
  auto* patience = app.add_option("--patience", t.patience,
                                  "With --validation: end after N epochs without a better one; 0: train all epochs")
                       ->type_name("N")
                       ->capture_default_str();
  add_recipe_options(app, t.recipe);
  options.quantize.add_to(app);
  options.prune.add_to(app);
  add_checked(
      app, "--learn", options.learn, CLI::IsMember({"all", "scales"}),
      "With --quantize, all: weights, scales, kmeans' values and biases learn by SGD; scales: the codes stay, and "
      "the others learn by Adam, in steps of --lr (default here 0.003) times their root mean square");
  app.add_option("--distill", options.teacher,
                 "Learn what this model predicts for each training image, in place of its label: for a packed network, "
                 "what its float network predicts")
      ->type_name("FILE");
  app.add_option("--distill-weight", options.teacher_weight,
                 "Part of the loss, from 0 to 1, that is the distance from --distill's predictions; the labels have "
                 "the rest")
      ->capture_default_str();
  options.device.add_to(app);
  app.add_option(
         "--blocks", t.blocks,
         "Compute each batch in blocks of B images, on the CPU each on one thread, side by side: the result then "
         "has the same bits for any number of threads and of ranks; 0: a batch is computed at once, but under "
         "mpirun or srun in blocks of 32")
      ->type_name("B")
      ->capture_default_str();
  add_checked(
      app, "--reduce", options.reduce, CLI::IsMember({"exact", "fast"}),
      "Under mpirun or srun, how ranks add up gradients. exact: by blocks, with the same bits for any number of ranks; "
      "fast: each rank computes its share of a batch at once, and MPI or NCCL adds up in the order that it likes");
  add_exchange_option(app, options.exchange);
  add_rank_timeout(app, options.rank_timeout);
  add_checked(app, "--checkpoint-every", options.checkpoint_seconds, CLI::Range(0.0, 1e9),
              "Write a checkpoint every SECONDS while training")
      ->type_name("SECONDS");
  app.add_option("--resume", options.resume,
                 "Continue from a checkpoint; only --epochs may be raised, and --patience changed")
      ->type_name("FILE");
  app.add_flag("--other-images", options.other_images,
               "With --resume: go on although the images are not those that the checkpoint was trained on");
  app.add_option("--out", options.output,
                 "Model to write; default: weights/model_<date>_<time>_final_frozen_<network>.safetensors. "
                 "Checkpoints lie beside it")
      ->type_name("FILE");
  add_json_option(app, options.json);
  let_first_rank_speak();
  return run_long_tool(app, argc, argv, [&] {
    if (!options.resume.empty()) refuse_with_resume(app);
    check_recipe_options(app);
    const bool anew = options.init == "random" || options.reset == "all";
    t.freeze_features = options.freeze.empty() ? !anew : options.freeze == "features";
    t.recipe.whitened = options.first_filters == "whitened";
    if (t.recipe.whitened && !anew && options.resume.empty())
      throw UsageError("--first-filters whitened replaces filters: it needs --init random or --reset all");
    options.quantize.validate();
    t.pruning = options.prune.options(app.get_option("--prune")->count() > 0);
    if (options.learn == "scales") learn_scales(app, options);
    if (options.teacher.empty() && app.get_option("--distill-weight")->count() > 0)
      throw UsageError("--distill-weight needs --distill");
    if (!options.teacher.empty())
      t.distillation = {.weight = options.teacher_weight, .teacher = options.teacher, .fingerprint = {}};
    t.flip = options.augment != "none";
    t.shift = options.augment.starts_with("flip-shift");
    t.cut = options.augment == "flip-shift-cut";
    t.precision = options.precision == "float16" ? Precision::float16 : Precision::float32;
    t.schedule = parse_schedule(options.schedule);
    const Given given{
        .epochs = epochs->count() > 0, .patience = patience->count() > 0, .image_size = image_size->count() > 0};
    run_on_ranks(options.rank_timeout, OnStop::all_agree, [&](RankGroup& group) { finetune(options, given, group); });
  });
}
