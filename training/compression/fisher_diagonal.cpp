#include "training/compression/fisher_diagonal.h"

#include <algorithm>

#include "engine/core/random.h"
#include "layers/softmax.h"

namespace nibblenet {
namespace {

constexpr uint64_t label_stream = 0x6C61626C'00000000ULL;  // "labl"

size_t first_linear_layer(const Network& network) {
  size_t index = network.classifier_begin();
  while (network.layers()[index].spec.kind != LayerKind::linear) ++index;
  return index;
}

size_t drawn_from(const std::vector<double>& p, double uniform) {
  size_t label = 0;
  for (; label + 1 < p.size() && uniform >= p[label]; ++label) uniform -= p[label];
  return label;
}

}  // namespace

FisherDiagonal::FisherDiagonal(Network& network, int64_t batch_size, uint64_t seed)
    : network_(network),
      begin_(first_linear_layer(network)),
      seed_(seed),
      pass_(network, begin_, network.layers().size(), {batch_size, network.feature_count()}, Pass::Mode::training),
      dlogits_(network.backend(), {batch_size, network.classes()}, MemoryCategory::activations) {
  for (size_t i = begin_; i < network.layers().size(); ++i)
    if (const LayerSpec& spec = network.layers()[i].spec; spec.has_parameters())
      squares_[spec.name + ".weight"].resize(static_cast<size_t>(spec.weight[0]));
}

std::vector<float> FisherDiagonal::gradients_of(TensorView<const float> x, int64_t first) {
  Backend& backend = network_.backend();
  const TensorView<const float> logits = pass_.forward(x);
  std::vector<float> values = backend.to_host(logits);
  const auto classes = static_cast<size_t>(network_.classes());
  for (int64_t i = 0; i < x.size(0); ++i) {
    Random random(seed_, label_stream + static_cast<uint64_t>(first + i));
    const std::span<float> row = std::span(values).subspan(static_cast<size_t>(i) * classes, classes);
    const std::vector<double> p = softmax(row);
    const size_t label = drawn_from(p, static_cast<double>(random.uniform()));
    const double sign = random.below(2) == 0 ? 1.0 : -1.0;
    for (size_t k = 0; k < classes; ++k) row[k] = static_cast<float>(sign * (p[k] - (k == label ? 1.0 : 0.0)));
  }
  backend.copy_from_host(dlogits_.data(), values.data(), values.size() * sizeof(float));
  std::map<std::string, std::vector<float>> of_layers;
  pass_.backward(std::as_const(dlogits_).view().slice(0, x.size(0)), [&](Layer& layer, const GradientSource& gradient) {
    of_layers[layer.spec.name + ".weight"] = backend.to_host(gradient.store().dbias);
  });
  std::vector<float> gradients;
  for (const auto& [weight, own] : of_layers) gradients.insert(gradients.end(), own.begin(), own.end());
  return gradients;
}

void FisherDiagonal::add(const std::vector<float>& gradients, int64_t images) {
  const float* next = gradients.data();
  for (auto& [weight, squares] : squares_)
    for (double& square : squares) {
      const auto gradient = static_cast<double>(*next++);
      square += gradient * gradient;
    }
  images_ += images;
}

std::map<std::string, std::vector<float>> FisherDiagonal::finish() const {
  std::map<std::string, std::vector<float>> result;
  for (const auto& [weight, squares] : squares_)
    for (const double sum : squares)
      result[weight].push_back(static_cast<float>(sum / static_cast<double>(std::max<int64_t>(images_, 1))));
  return result;
}

}  // namespace nibblenet
