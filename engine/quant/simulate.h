#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/core/tensor.h"

namespace nibblenet {

/// What the original notebooks call quantization: float32 in, float32 out. simulate() gives their
/// very bits, defects included, so that their tables can be rebuilt and set beside results of codes
/// that really have n bits. Simulated weights are float32 weights: they have no size of their own.
enum class Simulation : uint8_t { linear, linear_row, fp8, dynamic_tree, stable_embedding };

/// A row of the simulations' table.
struct SimulationTraits {
  Simulation simulation;
  std::string_view name;  ///< "simulated-linear"
  int min_bits;           ///< widths that the notebooks claim
  int max_bits;
  std::string_view summary;
};

/// Every simulation there is, in the order of the enum.
std::span<const SimulationTraits> simulation_table();

/// What may be mended of the notebooks' linear quantizers, to see which of their defects does the
/// damage.
struct LinearRepairs {
  bool overflow = false;    ///< what int8 cannot hold is clamped, not wrapped around
  bool truncation = false;  ///< rounded to nearest, not cut
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
  int bits;  ///< as the notebooks claim them; bits_needed() tells what they are
  LinearRepairs repairs = {};
  friend bool operator==(const SimulatedScheme&, const SimulatedScheme&) = default;
};

/// Whether `text` starts as the names of simulations do ("simulated-…"), be it one or not.
bool names_simulation(std::string_view text);

/// NAME[:BITS][+REPAIR…], without BITS the most there are. Throws UsageError that lists what is
/// supported.
SimulatedScheme parse_simulated_scheme(std::string_view text);
/// "simulated-dynamic-tree:4", "simulated-linear-row:8+overflow+truncation"
std::string to_string(const SimulatedScheme& scheme);
/// Throws UsageError for a width that the notebooks do not have, and for repairs of what is not
/// linear.
void validate(const SimulatedScheme& scheme);

/// The notebooks' numbers for one weight tensor (OI or OIHW; biases are never touched), bit for
/// bit:
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

/// How many weights have e = 0, 1, …: the notebooks' "exponent counts". e ends at bits - 1, where
/// zeros fall, too; a row of zeros counts as e = 0, as 0 / 0 does there.
struct ExponentCounts {
  std::array<int64_t, 8> counts{};
};
/// Counts weights by the decimal exponent of their dynamic-tree code.
ExponentCounts exponent_counts(TensorView<const float> weights, int bits, std::string_view name = "weights");

/// What it would take to store values that share a scale: the largest number of distinct values in
/// a row (a run of the last dimension), and the bits that number them. Rows of the stable embedding
/// share several scales; its figure is that of a code that has no block number beside it.
struct ValueNeed {
  int64_t distinct = 0;
  int bits = 0;  ///< ceil(log2(distinct))
};
/// Bits that storing these simulated values needs.
ValueNeed bits_needed(TensorView<const float> simulated);

}  // namespace nibblenet
