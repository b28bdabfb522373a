#include "training/schedule.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

constexpr std::array<std::string_view, 4> names = {"constant", "cosine", "warmup", "warmup-cosine"};
constexpr int64_t warmup_share = 20;  // one step in so many

}  // namespace

Schedule parse_schedule(std::string_view name) {
  const auto found = std::ranges::find(names, name);
  if (found == names.end())
    fail<UsageError>("unknown schedule '{}'; supported: constant, cosine, warmup, warmup-cosine", name);
  return static_cast<Schedule>(found - names.begin());
}

double learning_rate_factor(Schedule schedule, int64_t step, int64_t total_steps) {
  const bool warms_up = schedule == Schedule::warmup || schedule == Schedule::warmup_cosine;
  const int64_t warmup_steps = warms_up ? std::max<int64_t>(1, total_steps / warmup_share) : 0;
  if (step < warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  if (schedule == Schedule::constant || schedule == Schedule::warmup) return 1.0;
  const double progress =
      static_cast<double>(step - warmup_steps) / static_cast<double>(std::max<int64_t>(1, total_steps - warmup_steps));
  return 0.5 * (1.0 + std::cos(std::numbers::pi * std::min(progress, 1.0)));
}

}  // namespace nibblenet
