#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "engine/quant/scheme.h"

namespace nibblenet {

/// The different values in the groups of one kind, and what storing the tensor by a table a group
/// takes.
struct ValueTables {
  int64_t groups = 0;
  int64_t most = 0;  ///< most different values in a group
  int bits = 0;      ///< ceil(log2(most)): the width of its indices
  /// Each group's indices at the group's own width, and its table of float32 values.
  double bytes = 0;
};

/// What storing a float tensor really takes, whatever width somebody claims for it.
struct ValueCheck {
  int64_t weights = 0;
  ValueTables tensor;
  ValueTables channel;
  ValueTables row;
  std::optional<Scheme> scheme;  ///< the smallest one found that reproduces every value
  int64_t scheme_bytes = 0;      ///< of all parts of its packed tensor, padding included

  /// Bytes of the cheapest way without a scheme: one of the three tables, or float32.
  double table_bytes() const;
  /// Bytes of the cheapest way.
  double bytes() const;
  /// The cheapest way: "linear:4:channel", "table by tensor", "table by channel", "table by row" or
  /// "float32".
  std::string stored_as() const;
};

/// Counts the different values of a tensor (OI or OIHW) and looks for a scheme that decodes to the
/// same bits. 0 and -0 count as one value, and as equal. The search tries every unsorted method
/// with fixed values, at every width, in groups by tensor, channel, row and blocks of 16 to 256,
/// with f32 and f16 scales: those of the extremes, and for `linear` of the values' own spacing.
/// `on_weights`, if there is one, is called with the number of counted weights and their total,
/// then before each scheme with the total twice; what it throws ends the check. Throws ShapeError
/// for other ranks and tensors without elements, Error naming `name` for NaN and infinities.
ValueCheck check_values(TensorView<const float> weights, std::string_view name,
                        const std::function<void(int64_t, int64_t)>& on_weights = {});

}  // namespace nibblenet
