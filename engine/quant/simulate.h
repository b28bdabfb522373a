#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/core/tensor.h"

namespace nibblenet {

/// A quantizer of the original notebooks: float32 in, float32 out. simulate() gives their exact
/// bits, defects included, so that their tables can be rebuilt and compared with true n-bit codes.
/// Simulated weights are float32 weights: they have no size of their own.
enum class Simulation : uint8_t { linear, linear_row, fp8, dynamic_tree, stable_embedding };

/// A row of the simulations' table.
struct SimulationTraits {
  Simulation simulation;
  std::string_view name;  ///< "simulated-linear"
  int min_bits;           ///< widths that the notebooks claim
  int max_bits;
  std::string_view summary;
};

/// All simulations, in the order of the enum.
std::span<const SimulationTraits> simulation_table();

/// Repairs of the notebooks' linear quantizers, each of one defect, to see which defect does the
/// damage.
struct LinearRepairs {
  bool overflow = false;    ///< values beyond int8 are clamped, not wrapped around
  bool truncation = false;  ///< values are rounded to nearest, not truncated
  bool range = false;       ///< min and max are widened to include 0
  bool zero_point = false;  ///< a whole number is added to w S, so that min…max falls on -128…127, wherever it lies
  bool precision = false;   ///< S, w S and the quotient in double, not float
  friend bool operator==(const LinearRepairs&, const LinearRepairs&) = default;
};

/// A row of the repairs' table.
struct LinearRepairTraits {
  bool LinearRepairs::*flag;
  std::string_view name;  ///< "zero-point"
};
/// The list of repairs.
std::span<const LinearRepairTraits> linear_repair_table();
/// "overflow,zero-point", or "all". Throws UsageError that lists what is supported.
LinearRepairs parse_linear_repairs(std::string_view text);

/// A simulation at a claimed width.
struct SimulatedScheme {
  Simulation simulation;
  int bits;  ///< that the notebooks claim; bits_needed() measures the true number
  LinearRepairs repairs = {};
  friend bool operator==(const SimulatedScheme&, const SimulatedScheme&) = default;
};

/// Whether `text` starts with "simulated-", like the names of simulations.
bool names_simulation(std::string_view text);

/// Parses NAME[:BITS][+REPAIR…]; default of BITS: the method's most. Throws UsageError that lists
/// what is supported.
SimulatedScheme parse_simulated_scheme(std::string_view text);
/// "simulated-dynamic-tree:4", "simulated-linear-row:8+overflow+truncation"
std::string to_string(const SimulatedScheme& scheme);
/// Throws UsageError for a width that the notebooks do not have, and for repairs of a simulation
/// that is not linear.
void validate(const SimulatedScheme& scheme);

/// Writes the notebooks' values of one weight tensor (OI or OIHW), bit for bit:
///
///   linear            S = (1/(max - min)) * 255 of the tensor; w S cut to an integer and wrapped
///                     to int8, over S
///   linear-row        the same, each row by itself
///   fp8               x = w / row's maximum; three mantissa bits, the rest cut; exponent clamped to
///                     -14…15
///   dynamic-tree      x as before; e = steps of x10 until |x| >= 0.1; of the mantissa 7 bits for
///                     e = 0, n-2-e else, the rest cut; 0 for e >= n-2
///   stable-embedding  a matrix (a kernel's slice) sorted by |w|, blocks of its row count, dynamic
///                     tree of 8 bits in each
///
/// A row is a run of the last dimension. Three inputs break the notebooks and are defined here: a
/// zero among other weights (their tree never ends) is 0 in the tree; a row or block of zeros (0 /
/// 0) gives zeros; so does, in linear, a range beyond float's. In fp8 a zero becomes 2^-14 of the
/// row's maximum, as it does there. `out` has the shape of `weights` and may not overlap it; `name`
/// is for errors. Throws Error for NaN and Inf, ShapeError for other shapes.
void simulate(TensorView<float> out, TensorView<const float> weights, const SimulatedScheme& scheme,
              std::string_view name = "weights");

/// The notebooks' "exponent counts": how many weights have e = 0, 1, …, bits - 1. Zeros count as
/// bits - 1, but those of a row of zeros as 0, like the 0 / 0 of the notebooks.
struct ExponentCounts {
  std::array<int64_t, 8> counts{};
};
/// Counts weights by the decimal exponent of their dynamic-tree code.
ExponentCounts exponent_counts(TensorView<const float> weights, int bits, std::string_view name = "weights");

/// The need of values that share a scale: the most distinct values in a row (a run of the last
/// dimension), and the bits that number them. A row of the stable embedding has several scales; its
/// figure is that of a code without a block id.
struct ValueNeed {
  int64_t distinct = 0;
  int bits = 0;  ///< ceil(log2(distinct))
};
/// Counts the bits that storing these simulated values needs.
ValueNeed bits_needed(TensorView<const float> simulated);

}  // namespace nibblenet
