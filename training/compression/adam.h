#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/io/state_dict.h"

namespace nibblenet {

/// Adam (Kingma and Ba 2015, arXiv 1412.6980; 0.9, 0.999) for a few thousand numbers on the host.
/// Its steps are relative to the numbers' root mean square, as Adafactor's (Shazeer and Stern 2018,
/// arXiv 1804.04235, section 8): one learning rate does for scales, codebooks and biases.
class Adam {
 public:
  explicit Adam(size_t count = 0) : means_(count), squares_(count) {}

  /// The `number`-th step (from 1) of values against their gradients.
  void step(std::span<float> values, std::span<const float> gradients, double learning_rate, int64_t number);

  /// Both moments, under `name` and `name`.squares.
  void save(StateDict& momenta, const std::string& name) const;
  /// The inverse. Throws FormatError or ShapeError for tensors that are missing or do not fit.
  void restore(const StateDict& momenta, const std::string& name);

 private:
  std::vector<float> means_;
  std::vector<float> squares_;
};

/// Host numbers as a parameter of a state dict; nothing for none.
void add_vector(StateDict& dict, std::string name, std::span<const float> values);
/// The inverse, into numbers whose count is known; nothing for none. Throws FormatError or
/// ShapeError.
void load_vector(const StateDict& dict, const std::string& name, std::span<float> values);

}  // namespace nibblenet
