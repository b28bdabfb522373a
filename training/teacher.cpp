#include "training/teacher.h"

#include <algorithm>
#include <cmath>

#include "layers/softmax.h"

namespace nibblenet {

Teacher::Teacher(Network& network, double weight, const Preprocess& preprocess, int64_t batch_size)
    : network_(network), weight_(weight), preprocess_(preprocess), batch_size_(batch_size) {}

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

void Teacher::mix_into(std::span<double> targets) const {
  if (!std::ranges::all_of(logits_, [](float logit) { return std::isfinite(logit); }))
    fail<FormatError>("the teacher's logits are NaN or infinite; tools/inspect shows which of its weights are");
  const auto classes = static_cast<size_t>(network_.classes());
  for (size_t begin = 0; begin < targets.size(); begin += classes) {
    const std::vector<double> p = softmax(std::span(logits_).subspan(begin, classes));
    for (size_t k = 0; k < classes; ++k) targets[begin + k] = weight_ * p[k] + (1 - weight_) * targets[begin + k];
  }
}

}  // namespace nibblenet
