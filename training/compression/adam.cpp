#include "training/compression/adam.h"

#include <algorithm>
#include <cmath>

namespace nibblenet {
namespace {

constexpr double beta1 = 0.9, beta2 = 0.999;
/// Gradients far below this change nothing. Numbers that no image reaches have such gradients.
constexpr double epsilon = 1e-12;

double root_mean_square(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

}  // namespace

void Adam::step(std::span<float> values, std::span<const float> gradients, double learning_rate, int64_t number) {
  if (values.empty()) return;
  const double mean_correction = 1 - std::pow(beta1, static_cast<double>(number));
  const double square_correction = 1 - std::pow(beta2, static_cast<double>(number));
  const double rate = learning_rate * root_mean_square(values);
  for (size_t i = 0; i < values.size(); ++i) {
    const auto gradient = static_cast<double>(gradients[i]);
    const double mean = beta1 * static_cast<double>(means_[i]) + (1 - beta1) * gradient;
    const double square = beta2 * static_cast<double>(squares_[i]) + (1 - beta2) * gradient * gradient;
    means_[i] = static_cast<float>(mean);
    squares_[i] = static_cast<float>(square);
    const double step = mean / mean_correction / (std::sqrt(square / square_correction) + epsilon);
    values[i] -= static_cast<float>(rate * step);
  }
}

void Adam::save(StateDict& momenta, const std::string& name) const {
  add_vector(momenta, name, means_);
  add_vector(momenta, name + ".squares", squares_);
}

void Adam::restore(const StateDict& momenta, const std::string& name) {
  load_vector(momenta, name, means_);
  load_vector(momenta, name + ".squares", squares_);
}

void add_vector(StateDict& dict, std::string name, std::span<const float> values) {
  if (values.empty()) return;
  Tensor<float> copy(host_memory(), {static_cast<int64_t>(values.size())}, MemoryCategory::data);
  std::ranges::copy(values, copy.data());
  dict.parameters.push_back({.name = std::move(name), .value = std::move(copy)});
}

void load_vector(const StateDict& dict, const std::string& name, std::span<float> values) {
  if (values.empty()) return;
  const Tensor<float>& source = dict.at(name).values();
  expect_shape(source.shape(), {static_cast<int64_t>(values.size())}, name);
  std::ranges::copy(source.view(), values.begin());
}

}  // namespace nibblenet
