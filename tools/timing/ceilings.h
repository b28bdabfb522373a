#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/json.h"
#include "kernels/backend.h"

namespace nibblenet::tools {

/// The measured peak rates of a device, which the times of layers are compared with.
struct Ceilings {
  double bytes_per_second = 0;               ///< the faster of reading a large buffer, and reading and writing it
  double float32_per_second = 0;             ///< operations in large products; a multiplication and an addition are two
  std::optional<double> float16_per_second;  ///< the same in float16, if the device has it
  std::string products_by;                   ///< description of the backend that computed the products
  /// Pairs of n and the seconds that a recording of n tiny dependent operations takes: the least
  /// that a pass of n operations takes. Empty when the backend records nothing.
  std::vector<std::pair<int64_t, double>> chains;
};

/// Measures `backend`; each measurement samples for `seconds`. `products` computes the products:
/// the backend itself or a library's. Throws Stopped on Ctrl-C.
Ceilings measure_ceilings(Backend& backend, Backend& products, double seconds);

/// The ceilings in bench's JSON.
nlohmann::json to_json(const Ceilings& ceilings);

}  // namespace nibblenet::tools
