#include "tools/training/training_run.h"

#include <fmt/core.h>

#include <chrono>
#include <optional>

#include "tools/common/command_line.h"
#include "tools/common/progress.h"

namespace nibblenet::tools {

void train(Trainer& trainer, const TrainingOptions& options, const std::filesystem::path& checkpoint,
           const std::string& resume_command) {
  using Clock = std::chrono::steady_clock;
  std::optional<Progress> progress;
  auto last_saved = Clock::now();
  const auto save_when_due = [&] {
    if (Clock::now() - last_saved < std::chrono::minutes(2)) return;
    trainer.save_checkpoint(checkpoint);
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
    progress->update(position.batch, batches,
                     fmt::format("loss {:.4f}, {:.1f} images/s",
                                 position.loss_sum / static_cast<double>(position.images), images_per_second));
    save_when_due();
    return interrupted();
  };
  callbacks.on_epoch = [&](const EpochReport& report) {
    progress.reset();
    fmt::print(
        "epoch {}/{}: loss {:.4f}, train accuracy {:.2f} %, test loss {:.4f}, test accuracy {:.2f} %, {:.1f} s, {:.1f} "
        "images/s{}\n",
        report.epoch, options.epochs, report.loss, 100 * report.train_accuracy, report.test_loss,
        100 * report.test_accuracy, report.seconds, report.images_per_second,
        options.pruning.enabled ? fmt::format(", {:.2f} % zeros", 100 * report.sparsity) : "");
    std::fflush(stdout);
  };
  const int64_t first_step = trainer.position().step;
  const bool complete = !interrupted() && trainer.run(callbacks);
  progress.reset();
  if (!complete && trainer.position().step == first_step)
    throw Stopped("stopped before the first step; nothing was written");
  trainer.save_checkpoint(checkpoint);
  if (!complete) throw Stopped("stopped; continue with: " + resume_command);
}

nlohmann::json history_json(const std::vector<EpochReport>& history) {
  nlohmann::json epochs = nlohmann::json::array();
  for (const EpochReport& report : history)
    epochs.push_back({{"epoch", report.epoch},
                      {"loss", report.loss},
                      {"train_accuracy", report.train_accuracy},
                      {"test_loss", report.test_loss},
                      {"test_accuracy", report.test_accuracy},
                      {"seconds", report.seconds},
                      {"images_per_second", report.images_per_second},
                      {"sparsity", report.sparsity}});
  return epochs;
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
