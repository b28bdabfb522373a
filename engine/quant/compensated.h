#pragma once

#include <cstdint>
#include <functional>

#include "engine/quant/packed_tensor.h"
#include "engine/quant/second_moments.h"

namespace nibblenet {

/// In which order weights of an output channel are rounded: as stored, or those of the largest inputs first.
enum class ColumnOrder : uint8_t { natural, diagonal };

/// Called as rounding goes on with the inputs done of all; may throw to stop.
using OnColumns = std::function<void(int64_t done, int64_t total)>;

/// What compensated rounding did to a tensor.
struct Compensation {
  double nearest_error = 0;  ///< tr((W - V) H (W - V)^T) with every weight rounded to nearest
  double error = 0;          ///< the same with the codes chosen
  double damping = 0;        ///< what was added to H's diagonal, relative to its mean
  int64_t rows_kept = 0;     ///< output channels whose nearest codes were at least as good, and stayed
  int64_t dead_inputs = 0;   ///< inputs that were 0 throughout: their weights stay rounded to nearest
};

/// Chooses the codes of `packed` again so that errors of rounding cancel in the layer's output: column by column, what
/// rounding does to one input's weights is made up for by the weights not yet rounded (GPTQ, Frantar 2023, arXiv
/// 2210.17323, in blocks of 128 columns). Scales, zero points, block ids and the codebook stay. An output channel
/// whose error on these moments would not fall keeps its codes. H gets 1 % of its mean diagonal added to the
/// diagonal, ten times as much for as long as it is not positive definite.
/// `packed` holds `weights` rounded to nearest. Takes D^2 + 2 K D floats while it works. Throws ShapeError when sizes
/// disagree, Error when no damping helps.
Compensation compensate(PackedTensor& packed, TensorView<const float> weights, const SecondMoments& moments,
                        ColumnOrder order = ColumnOrder::natural, const OnColumns& on_columns = {});

}  // namespace nibblenet
