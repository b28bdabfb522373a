#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/json.h"
#include "kernels/backend.h"

namespace nibblenet::tools {

/// The measured peak rates of a device, which the times of layers are compared with.
struct Ceilings {
  double bytes_per_second = 0;  ///< the faster of reading a large buffer, and reading and writing it
  /// Operations in large products, by the type of their factors, for those that the device has. A
  /// multiplication and an addition are two. Weights are float, in int8 4-bit codes.
  std::map<Precision, double> per_second;
  std::string products_by;  ///< description of the backend that computed the products
  /// Pairs of n and the seconds that a recording of n tiny dependent operations takes: the least
  /// that a pass of n operations takes. Empty when the backend records nothing.
  std::vector<std::pair<int64_t, double>> chains;
};

/// Measures `backend`; each measurement samples for `seconds`. `products` computes the products:
/// the backend itself or a library's. Every
/// precision is measured that the device has. Throws Stopped on Ctrl-C.
Ceilings measure_ceilings(Backend& backend, Backend& products, double seconds);
/// "12.3 GB/s, 0.456 TFLOP/s in float32, …, by NAME"
std::string to_string(const Ceilings& ceilings);

/// The ceilings in bench's JSON.
nlohmann::json to_json(const Ceilings& ceilings);

}  // namespace nibblenet::tools
