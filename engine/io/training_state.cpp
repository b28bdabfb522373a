#include "engine/io/training_state.h"

namespace nibblenet {

StateDict take_from_under(std::string_view prefix, StateDict& from) {
  StateDict taken, left;
  for (Parameter& parameter : from.parameters) {
    const bool match = parameter.name.starts_with(prefix);
    if (match) parameter.name.erase(0, prefix.size());
    (match ? taken : left).parameters.push_back(std::move(parameter));
  }
  from.parameters = std::move(left.parameters);
  return taken;
}

bool drop_training_state(StateDict& dict) {
  if (dict.metadata.erase(training_position_key) == 0) return false;
  take_from_under(momentum_prefix, dict);
  take_from_under(master_prefix, dict);
  take_from_under(average_prefix, dict);
  take_from_under(best_prefix, dict);
  return true;
}

}  // namespace nibblenet
