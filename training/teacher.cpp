#include "training/teacher.h"

#include <algorithm>
#include <cmath>

#include "layers/softmax.h"

namespace nibblenet {
namespace {

/// Turns logits into weight softmax(logits) + (1 - weight) onehot(label), in place. Returns the
/// entropy of the result.
double mix_with_label(std::span<float> row, double weight, int32_t label) {
  const std::vector<double> p = softmax(row);
  double entropy = 0;
  for (size_t k = 0; k < row.size(); ++k) {
    const double target = weight * p[k] + (static_cast<int32_t>(k) == label ? 1 - weight : 0.0);
    row[k] = static_cast<float>(target);
    if (target > 0) entropy -= target * std::log(target);
  }
  return entropy;
}

}  // namespace

Teacher::Teacher(Network& network, double weight, const Preprocess& preprocess, int64_t batch_size)
    : network_(network),
      weight_(weight),
      preprocess_(preprocess),
      batch_size_(batch_size),
      targets_(network.backend(), {batch_size, network.classes()}, MemoryCategory::data) {}

void Teacher::predict(const Dataset& dataset, const OnProgress& on_progress) {
  if (predicted_.empty())
    predicted_ = std::move(evaluate(network_, dataset, preprocess_, batch_size_, on_progress).logits);
}

void Teacher::look_at(ConstActivations images) {
  if (!pass_)
    pass_.emplace(network_, 0, network_.layers().size(), Shape{batch_size_, preprocess_.crop, preprocess_.crop, 3},
                  Pass::Mode::inference);
  logits_ = network_.backend().to_host(pass_->forward(images));
}

void Teacher::look_at(std::span<const int64_t> positions) {
  logits_.clear();
  for (const int64_t position : positions) {
    const std::span<const float> row = std::as_const(predicted_).view().slice(position, 1).span();
    logits_.insert(logits_.end(), row.begin(), row.end());
  }
}

SoftTargets Teacher::targets(std::span<const int32_t> labels) {
  if (!std::ranges::all_of(logits_, [](float logit) { return std::isfinite(logit); }))
    fail<FormatError>("the teacher's logits are NaN or infinite; tools/inspect shows which of its weights are");
  const auto classes = static_cast<size_t>(network_.classes());
  double entropy = 0;
  for (size_t n = 0; n < labels.size(); ++n)
    entropy += mix_with_label(std::span(logits_).subspan(n * classes, classes), weight_, labels[n]);
  network_.backend().copy_from_host(targets_.data(), logits_.data(), logits_.size() * sizeof(float));
  return {std::as_const(targets_).view().slice(0, static_cast<int64_t>(labels.size())),
          entropy / static_cast<double>(labels.size())};
}

}  // namespace nibblenet
