#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/quant/size.h"
#include "layers/network/layer_routes.h"
#include "layers/network/network.h"

namespace nibblenet::tools {

/// "22,210,912" for people.
std::string thousands(int64_t value);
/// "22.211 MB (21.182 MiB)"
std::string megabytes(double bytes);

/// The ledger as a table: estimated | file | resident per layer and in all, bits per weight,
/// differences in percent. `file_bytes` and `header_bytes` may be 0 when there is no file yet.
std::string size_table(const std::vector<SizeRow>& rows, int64_t file_bytes, int64_t header_bytes);

/// The "size" object of eval's and pack's JSON, in bytes: the sums, and the rows under "layers".
nlohmann::json size_json(const std::vector<SizeRow>& rows, int64_t file_bytes, int64_t header_bytes);

/// Wilson's 95 % interval of `successes` in `trials`, in [0, 1].
struct Interval {
  double low;
  double high;
};
/// 95 % interval of a proportion (Wilson 1927).
Interval wilson_interval(int64_t successes, int64_t trials);

/// Two-sided exact McNemar test: how likely a split of only-A-right against only-B-right at least
/// as uneven as this is when both are equally good.
double mcnemar_p(int64_t only_a, int64_t only_b);

/// One line a layer: which kernel computes it.
std::string routes_table(const std::vector<LayerRoute>& routes);
/// [{layer, kernel, expansion, pools, flattens}]; expansion is null where there is none.
nlohmann::json to_json(const std::vector<LayerRoute>& routes);

}  // namespace nibblenet::tools
