#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/io/state_dict.h"

namespace nibblenet {

/// Adam (Kingma and Ba 2015, arXiv 1412.6980; 0.9, 0.999) for a few thousand numbers on the host.
/// Steps are relative to the numbers' root mean square, as in Adafactor (Shazeer and Stern 2018,
/// arXiv 1804.04235, section 8), so that one learning rate serves scales, codebooks and biases.
class Adam {
 public:
  explicit Adam(size_t count = 0) : means_(count), squares_(count) {}

  /// Takes step `number` (from 1) of values against their gradients.
  void step(std::span<float> values, std::span<const float> gradients, double learning_rate, int64_t number);

  /// Adds both moments under `name` and `name`.squares.
  void save(StateDict& momenta, const std::string& name) const;
  /// Reads what save() added. Throws FormatError or ShapeError for tensors that are missing or do
  /// not fit.
  void restore(const StateDict& momenta, const std::string& name);

 private:
  std::vector<float> means_;
  std::vector<float> squares_;
};

/// Adds host numbers as a parameter of a state dict. Adds nothing if there are none.
void add_vector(StateDict& dict, std::string name, std::span<const float> values);
/// Reads what add_vector() added into `values`, whose count is known. Throws FormatError or
/// ShapeError.
void load_vector(const StateDict& dict, const std::string& name, std::span<float> values);

}  // namespace nibblenet
