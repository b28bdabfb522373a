#include "training/targets.h"

#include <algorithm>
#include <cmath>

namespace nibblenet {

void BatchLabels::clear() {
  own.clear();
  partners.clear();
  shares.clear();
}

std::vector<int32_t> BatchLabels::dominant() const {
  std::vector<int32_t> labels;
  for (size_t n = 0; n < own.size(); ++n) labels.push_back(dominant(n));
  return labels;
}

Targets::Targets(Backend& backend, int64_t batch_size, int64_t classes, double smoothing)
    : backend_(backend),
      classes_(classes),
      smoothing_(smoothing),
      on_device_(backend, {batch_size, classes}, MemoryCategory::data) {}

SoftTargets Targets::of(const BatchLabels& labels, const Teacher* teacher) {
  const auto classes = static_cast<size_t>(classes_);
  targets_.assign(labels.own.size() * classes, smoothing_ / static_cast<double>(classes_));
  for (size_t n = 0; n < labels.own.size(); ++n) {
    const double share = labels.mixed() ? labels.shares[n] : 1.0;
    double* row = targets_.data() + n * classes;
    row[labels.own[n]] += (1 - smoothing_) * share;
    if (labels.mixed()) row[labels.partners[n]] += (1 - smoothing_) * (1 - share);
  }
  if (teacher != nullptr) teacher->mix_into(targets_);
  double entropy = 0;
  entropies_.assign(labels.own.size(), 0.0);
  for (size_t i = 0; i < targets_.size(); ++i)
    if (targets_[i] > 0) entropies_[i / classes] -= targets_[i] * std::log(targets_[i]);
  for (const double one : entropies_) entropy += one;
  rounded_.assign(targets_.begin(), targets_.end());
  backend_.copy_from_host(on_device_.data(), rounded_.data(), rounded_.size() * sizeof(float));
  const auto images = static_cast<int64_t>(labels.own.size());
  return {std::as_const(on_device_).view().slice(0, images), entropy / static_cast<double>(images), entropies_};
}

}  // namespace nibblenet
