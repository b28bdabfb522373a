#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibblenet {

/// How the learning rate changes over a run of `total_steps` steps.
enum class Schedule : uint8_t {
  constant,
  cosine,         ///< from the full rate to 0 along half a cosine
  warmup,         ///< linear rise over the first twentieth of the steps, then constant
  warmup_cosine,  ///< linear rise, then cosine
};

/// The schedule of that name in flags. Throws UsageError with the list of names.
Schedule parse_schedule(std::string_view name);

/// Factor on the base learning rate at `step` of [0, total_steps), in (0, 1].
double learning_rate_factor(Schedule schedule, int64_t step, int64_t total_steps);

}  // namespace nibblenet
