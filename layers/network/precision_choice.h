#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "layers/network/network.h"

namespace nibblenet {

/// The divergence from float32, in nats an image, up to which `auto` takes a narrower precision.
inline constexpr double most_divergence = 0.0005;

/// Prefix of the metadata keys that hold divergences: "divergence:int8", "divergence:images".
inline constexpr std::string_view divergence_key = "divergence:";

/// What computing in a narrow precision does to a network's predictions.
struct PrecisionDivergence {
  double nats = 0;     ///< mean Kullback-Leibler divergence from the same weights' predictions in float32
  int64_t images = 0;  ///< that it was measured on; training images that no code was chosen by
};

/// The divergence that a model's metadata hold for a precision; nothing without an entry. Throws
/// FormatError for an entry that is no finite number of at least 0, and for a count of images that
/// is no positive number.
std::optional<PrecisionDivergence> divergence_of(const std::map<std::string, std::string>& metadata,
                                                 Precision precision);
/// Writes a divergence to the metadata, as a decimal number of three digits that count.
void set_divergence(std::map<std::string, std::string>& metadata, Precision precision,
                    const PrecisionDivergence& divergence);
/// Removes input ranges and divergences: they hold for the codes that they were measured with.
void forget_precisions(std::map<std::string, std::string>& metadata);

/// Gives 127 steps in place of 255 to the inputs of packed convolutions whose products in int8 are
/// then filtered: they take three quarters of the time (docs/cpu.md). Inputs without a range keep
/// their steps.
void halve_input_steps(StateDict& model);
/// Gives all inputs 255 steps again. Returns whether any had fewer.
bool restore_input_steps(std::map<std::string, std::string>& metadata);

/// The precision that a network shall compute in, and what is known of it.
struct PrecisionChoice {
  Precision precision = Precision::float32;
  bool demanded = false;                          ///< asked for by its name
  std::optional<PrecisionDivergence> divergence;  ///< of int8 and bfloat16, where it was measured
  std::vector<std::string> passed_over;           ///< why `auto` did not take a faster one, a line each
  bool lacks_ranges = false;                      ///< the model has no input ranges for some packed layer
  std::map<std::string, std::string> not_int8;    ///< why layers cannot compute in int8, where it was demanded
};

/// Chooses the precision of a model on a backend. `asked` is the name of a precision; "auto", the
/// fastest whose divergence is at most most_divergence; or empty, the backend's preferred one.
/// Throws UsageError for what the backend does not compute in, FormatError for broken metadata.
/// Requires: the model holds its codes.
PrecisionChoice choose_precision(std::string_view asked, const Backend& backend, const StateDict& model);

/// The precision in which a layer with parameters computes its products.
Precision precision_of(const Network& network, const Layer& layer);

/// Throws UsageError where int8 was demanded and a layer computes in another precision. It lists
/// these layers, and why. A folded first layer may: its input is no activation.
void expect_demanded(const PrecisionChoice& choice, const Network& network);

/// Lines for the user: what the precision costs, which layers take another one, and what is
/// missing. None for precisions that cost nothing.
std::vector<std::string> precision_lines(const PrecisionChoice& choice, const Network& network);

}  // namespace nibblenet
