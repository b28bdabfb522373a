#include "engine/quant/rounding_problem.h"

#include "engine/quant/bits.h"

namespace nibblenet {

RoundingProblem::RoundingProblem(const PackedTensor& packed, TensorView<const float> weights,
                                 const HessianFactor& factor, const RateCost& rate)
    : weights_(weights),
      factor_(factor),
      layout_(code_layout(packed)),
      affine_(packed.scheme.zero_point),
      codebook_(codebook_of(packed)),
      view_(view_of(packed, codebook_)) {
  for (int i = 0; i < codebook_.count; ++i) rank_[codebook_.ordered_codes[static_cast<size_t>(i)]] = i;
  if (rate.weight > 0) make_bit_costs(rate);
}

Step RoundingProblem::step_of(int64_t row, int64_t column) const {
  const int64_t k = input(column);
  const int64_t group = view_.block_ids == nullptr
                            ? view_.groups.group(row, k)
                            : read_field(view_.block_ids + row * view_.block_id_stride, k, view_.block_id_bits);
  return {.step = view_.step(group),
          .zero_point = view_.zero_points == nullptr ? 0.0F : static_cast<float>(view_.zero_points[group])};
}

void RoundingProblem::nearest_errors(int64_t row, float* errors) const {
  std::vector<float> values(static_cast<size_t>(view_.channel_elements));
  decode_reference(view_, row, 0, view_.channel_elements, values.data());
  for (int64_t j = 0; j < columns(); ++j) errors[j] = weight(row, j) - values[static_cast<size_t>(input(j))];
}

uint32_t RoundingProblem::best_code(int64_t row, int64_t column, float target, float scale) const {
  const Step step = step_of(row, column);
  const uint32_t nearest = code_of(target, step, codebook_, affine_);
  if (!weighs_bits()) return nearest;
  return cheapest_code(nearest, target, scale, step, rates_.class_at(row, input(column)),
                       bit_costs_[static_cast<size_t>(row)]);
}

/// The search starts at the nearest value. It goes both ways until the error alone, plus the least
/// cost of bits, exceeds the best sum.
uint32_t RoundingProblem::cheapest_code(uint32_t nearest, float target, float scale, const Step& step,
                                        size_t rate_class, float bit_cost) const {
  const std::vector<float>& bits = rates_.bits[rate_class];
  const float fewest = rates_.least[rate_class];
  if (bits[nearest] <= fewest || step.step == 0) return nearest;
  const auto squared_error = [&](uint32_t code) {
    const float error = (target - value_of(code, step)) * scale;
    return error * error;
  };
  uint32_t best = nearest;
  float least = squared_error(nearest) + bit_cost * bits[nearest];
  for (const int direction : {-1, 1})
    for (int rank = rank_[nearest] + direction; 0 <= rank && rank < codebook_.count; rank += direction) {
      const uint32_t code = codebook_.ordered_codes[static_cast<size_t>(rank)];
      const float square = squared_error(code);
      if (square + bit_cost * fewest >= least) break;
      if (const float cost = square + bit_cost * bits[code]; cost < least) {
        least = cost;
        best = code;
      }
    }
  return best;
}

/// L unit / g for each row, see gptq().
void RoundingProblem::make_bit_costs(const RateCost& rate) {
  std::vector<double> squares(static_cast<size_t>(rows()));
#pragma omp parallel for
  for (int64_t row = 0; row < rows(); ++row) {
    std::vector<float> errors(static_cast<size_t>(columns()));
    nearest_errors(row, errors.data());
    for (const float error : errors)
      squares[static_cast<size_t>(row)] += static_cast<double>(error) * static_cast<double>(error);
  }
  const auto g = [&](size_t row) { return rate.fisher.empty() ? 1.0 : static_cast<double>(rate.fisher[row]); };
  double unit = 0;
  for (size_t row = 0; row < squares.size(); ++row) unit += g(row) * squares[row];
  unit *= factor_.spread() / static_cast<double>(rows() * columns());
  for (size_t row = 0; row < squares.size(); ++row)
    bit_costs_.push_back(static_cast<float>(rate.weight * unit / g(row)));
}

void RoundingProblem::count_rates(const std::vector<uint8_t>& codes) { rates_ = code_rates(codes, layout_); }

double RoundingProblem::cost_above_nearest(int64_t row, const uint8_t* codes) const {
  if (!weighs_bits()) return 0;
  const uint8_t* nearest = view_.codes + row * view_.code_stride;
  double more = 0;
  for (int64_t j = 0; j < columns(); ++j) {
    const std::vector<float>& bits = rates_.bits[rates_.class_at(row, input(j))];
    more += static_cast<double>(bits[codes[j]]) - static_cast<double>(bits[read_field(nearest, input(j), view_.bits)]);
  }
  return static_cast<double>(bit_costs_[static_cast<size_t>(row)]) * more;
}

void RoundingProblem::store(PackedTensor& packed, int64_t row, const uint8_t* codes) const {
  uint8_t* channel = packed.codes.data() + row * view_.code_stride;
  std::vector<uint32_t> all(static_cast<size_t>(view_.channel_elements));
  for (int64_t k = 0; k < view_.channel_elements; ++k) all[static_cast<size_t>(k)] = read_field(channel, k, view_.bits);
  for (int64_t j = 0; j < columns(); ++j) all[static_cast<size_t>(input(j))] = codes[j];
  FieldWriter writer(channel);
  for (const uint32_t code : all) writer.put(code, view_.bits);
  writer.finish();
}

}  // namespace nibblenet
