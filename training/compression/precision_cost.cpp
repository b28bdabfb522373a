#include "training/compression/precision_cost.h"

#include <algorithm>
#include <array>
#include <vector>

#include "layers/network/evaluate.h"
#include "training/compression/sensitivity.h"

namespace nibblenet {
namespace {

/// The smallest limit of images a class that leaves at least `images` of all.
int64_t limit_of(const std::vector<int64_t>& class_sizes, int64_t images) {
  const int64_t largest = std::ranges::max(class_sizes);
  for (int64_t limit = 0; limit < largest; ++limit) {
    int64_t taken = 0;
    for (const int64_t size : class_sizes) taken += std::min(limit, size);
    if (taken >= images) return limit;
  }
  return largest;
}

}  // namespace

Dataset images_behind(const Dataset& training, int64_t calibrated, int64_t count) {
  std::vector<int64_t> sizes(max_classes);
  for (const uint8_t label : training.labels) ++sizes[label];
  std::erase(sizes, 0);
  if (sizes.empty()) return images_at(training, {});
  const int64_t first = limit_of(sizes, calibrated);
  const int64_t each = std::max<int64_t>(1, count / static_cast<int64_t>(sizes.size()));
  return subset(training, [&](int64_t position, int64_t) { return position >= first && position < first + each; });
}

bool computes_narrow(const Backend& backend) {
  try {
    for (const Precision narrow : {Precision::int8, Precision::bfloat16}) backend.expect_support(narrow);
    return true;
  } catch (const UsageError&) {
    return false;
  }
}

std::map<Precision, PrecisionDivergence> measure_precisions(Backend& backend, const StateDict& packed,
                                                            const Dataset& images, const Preprocess& preprocess,
                                                            int64_t batch_size, const OnProgress& on_progress) {
  constexpr std::array compared = {Precision::float32, Precision::int8, Precision::bfloat16};
  std::map<Precision, PrecisionDivergence> divergences;
  Evaluation reference;
  for (size_t i = 0; i < compared.size(); ++i) {
    Network network(backend, copy_of(packed), compared[i]);
    const auto progress = [&](int64_t done, int64_t total) {
      return on_progress &&
             on_progress(static_cast<int64_t>(i) * total + done, static_cast<int64_t>(compared.size()) * total);
    };
    Evaluation evaluation = evaluate(network, images, preprocess, batch_size, progress);
    if (i > 0)
      divergences[compared[i]] = {mean_divergence(reference.logits.view(), evaluation.logits.view()), images.size()};
    else
      reference = std::move(evaluation);
  }
  return divergences;
}

}  // namespace nibblenet
