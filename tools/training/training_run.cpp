#include "tools/training/training_run.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "tools/common/command_line.h"
#include "tools/common/outputs.h"
#include "tools/common/progress.h"

namespace nibblenet::tools {

void train(Trainer& trainer, const TrainingOptions& options, const std::filesystem::path& checkpoint, double seconds,
           const std::string& resume_command, const std::function<void()>& save_model) {
  using Clock = std::chrono::steady_clock;
  std::optional<Progress> progress;
  const auto start = Clock::now();
  auto last_saved = start;
  const int64_t first_step = trainer.position().step;
  const auto save = [&] {
    if (checkpoint.empty()) return;
    try {
      trainer.save_checkpoint(checkpoint);
    } catch (const IoError& error) {
      progress->finish();
      fmt::print(stderr, "no checkpoint, training goes on: {}\n", error.what());
    }
    last_saved = Clock::now();
  };
  Trainer::Callbacks callbacks;
  callbacks.on_features = [&](int64_t done, int64_t total) {
    if (!progress) progress.emplace("features (once, frozen)", "images");
    progress->update(done, total);
    return interrupted();
  };
  callbacks.on_step = [&](const TrainingPosition& position, int64_t batches, double images_per_second) {
    if (position.batch == 1 || !progress)
      progress.emplace(fmt::format("epoch {}/{}", position.epoch + 1, options.epochs), "batches");
    const double each = std::chrono::duration<double>(Clock::now() - start).count() /
                        static_cast<double>(std::max<int64_t>(1, position.step - first_step));
    const double steps_left =
        static_cast<double>(options.epochs) * static_cast<double>(batches) - static_cast<double>(position.step);
    progress->update(position.batch, batches,
                     fmt::format("all epochs {} left, loss {:.4f}, {:.1f} images/s", duration_text(each * steps_left),
                                 position.loss_sum / static_cast<double>(position.images), images_per_second));
    return interrupted();
  };
  callbacks.save_due = [&] {
    return !checkpoint.empty() && std::chrono::duration<double>(Clock::now() - last_saved).count() >= seconds;
  };
  callbacks.save = save;
  callbacks.on_test = [](int64_t, int64_t) { return interrupted(); };
  callbacks.on_epoch = [&](const EpochReport& report) {
    progress.reset();
    const EpochScore measured = report.measured();
    fmt::print(
        "epoch {}/{}: loss {:.4f}, train accuracy {:.2f} %, {} loss {:.4f}, {} accuracy {:.2f} %{}, {:.1f} s, {:.1f} "
        "images/s{}\n",
        report.epoch, options.epochs, report.loss, 100 * report.train_accuracy,
        report.validation ? "validation" : "test", measured.loss, report.validation ? "validation" : "test",
        100 * measured.accuracy, trainer.position().best == report.epoch ? " (the best so far)" : "", report.seconds,
        report.images_per_second,
        options.pruning.enabled ? fmt::format(", {:.2f} % zeros", 100 * report.sparsity) : "");
    if (report.epoch < options.epochs && is_trained(options, trainer.position()))
      fmt::print("ends early: {} epochs were no better than epoch {}\n", report.epoch - trainer.position().best,
                 trainer.position().best);
    std::fflush(stdout);
  };
  const bool complete = !trainer.any_rank(interrupted()) && trainer.run(callbacks);
  progress.reset();
  if (complete) return;
  if (trainer.position().step == first_step) throw Stopped("stopped before the first step; nothing was written");
  trainer.collect();
  if (checkpoint.empty()) throw Stopped("stopped");
  try {
    trainer.save_checkpoint(checkpoint);
  } catch (const IoError& error) {
    save_model();
    std::error_code missing;
    fail<IoError>("stopped, and the checkpoint could not be written ({}): the model is saved, momenta and position {}",
                  error.what(),
                  std::filesystem::exists(checkpoint, missing)
                      ? "are those of the checkpoint before; continue with: " + resume_command
                      : "are lost; --init goes on from it with new ones");
  }
  throw Stopped("stopped; continue with: " + resume_command);
}

void expect_replaceable(const std::filesystem::path& checkpoint, const std::filesystem::path& resumed) {
  std::error_code error;
  if (overwriting_forced() || !std::filesystem::exists(checkpoint, error)) return;
  if (!resumed.empty() && std::filesystem::equivalent(checkpoint, resumed, error)) return;
  try {
    if (is_of_finished_run(checkpoint)) return;
  } catch (const Error& unreadable) {
    fail<UsageError>("{} would be replaced and is no checkpoint ({}); choose another --out, or add --force",
                     checkpoint.string(), unreadable.what());
  }
  fail<UsageError>(
      "{0} is that of a run that was stopped: go on with tools/finetune --resume {0}, choose another "
      "--out, or add --force to begin anew",
      checkpoint.string());
}

nlohmann::json show_sparsity(const Trainer& trainer, bool print) {
  nlohmann::json layers = nlohmann::json::object();
  for (const LayerSparsity& layer : trainer.sparsity()) {
    const double part = static_cast<double>(layer.zeros) / static_cast<double>(layer.weights);
    layers[layer.layer] = part;
    if (print)
      fmt::print("{}: {} of {} weights are 0 ({:.2f} %)\n", layer.layer, layer.zeros, layer.weights, 100 * part);
  }
  return layers;
}

}  // namespace nibblenet::tools
