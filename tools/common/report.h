#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/json.h"
#include "engine/quant/size.h"
#include "layers/network/layer_routes.h"
#include "layers/network/network.h"
#include "layers/network/precision_choice.h"

namespace nibblenet {
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ResidentSize, codes, scales, zero_points, codebooks, block_ids, padding, biases,
                                   weights)
}  // namespace nibblenet

namespace nibblenet::tools {

/// "22,210,912"
std::string thousands(int64_t value);
/// "22.211 MB (21.182 MiB)"
std::string megabytes(double bytes);

/// "+1.250 %": how much more was measured than estimated; "-" without an estimate.
std::string difference(double measured, double estimated);

/// Columns for texts of `rows`: those of the longest, and `least`. `text` is a member or a
/// function.
template <class Rows, class Text>
size_t longest(const Rows& rows, size_t least, Text text) {
  for (const auto& row : rows) least = std::max(least, std::string_view(std::invoke(text, row)).size());
  return least;
}

/// The ledger of sizes as a table: estimated, file and resident bytes of each layer and in total,
/// bits per weight, differences in percent. `file_bytes` and `header_bytes` are 0 when there is no
/// file yet.
std::string size_table(const std::vector<SizeRow>& rows, int64_t file_bytes, int64_t header_bytes);

/// "size" in the JSON of eval and pack, in bytes: the totals, and one row a layer under "layers".
nlohmann::json size_json(const std::vector<SizeRow>& rows, int64_t file_bytes, int64_t header_bytes);

/// An estimate as JSON: its parts and their total.
nlohmann::json estimated_json(const EstimatedSize& size);

/// A confidence interval of a proportion, in [0, 1].
struct Interval {
  double low;
  double high;
};
/// The 95 % interval of the proportion successes / trials (Wilson 1927).
Interval wilson_interval(int64_t successes, int64_t trials);

/// The p-value of the two-sided exact McNemar test: the probability of a split between "only A is
/// right" and "only B is right" at least as uneven as this one, if both models are equally good.
double mcnemar_p(int64_t only_a, int64_t only_b);

/// Prints what a network's precision costs, where it costs something: precision_lines().
void print_precision(const PrecisionChoice& choice, const Network& network);
/// What a network computes in, as members of a tool's JSON: "precision"; "divergence" from float32
/// and "divergence_images", null where they were not measured; and "layer_precisions" by layer.
nlohmann::json precision_json(const PrecisionChoice& choice, const Network& network);

/// A table of the kernel that computes each layer, one line a layer.
std::string routes_table(const std::vector<LayerRoute>& routes);
/// The routes as JSON: [{layer, kernel, rotates, expansion, pools, flattens}]; expansion is null
/// when weights are not expanded.
nlohmann::json to_json(const std::vector<LayerRoute>& routes);

}  // namespace nibblenet::tools
