#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace nibblenet::tools {

/// What a device did at best, just now: what layers' times are held against.
struct Ceilings {
  double bytes_per_second = 0;               ///< large buffers read and written, or read: the faster of the two
  double float32_per_second = 0;             ///< operations in large products; a multiplication and an addition are two
  std::optional<double> float16_per_second;  ///< where the device has it
  std::string products_by;                   ///< whose products these were
  /// Recordings of so many of the smallest operations, one after the other, and the seconds they
  /// take: what a pass of as many operations takes at least. Empty where the backend records
  /// nothing.
  std::vector<std::pair<int64_t, double>> chains;
};

/// `products`: whose products are the measure, the backend itself or a library's. Throws Stopped on
/// Ctrl-C.
Ceilings measure_ceilings(Backend& backend, Backend& products, double seconds);

/// The ceilings in bench's JSON.
nlohmann::json to_json(const Ceilings& ceilings);

}  // namespace nibblenet::tools
