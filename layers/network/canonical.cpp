#include "layers/network/canonical.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/io/training_state.h"
#include "layers/network/batch_norm.h"
#include "layers/network/foreign_names.h"
#include "layers/network/network_spec.h"

namespace nibblenet {

std::vector<std::string> make_canonical(StateDict& dict, const std::string& title) {
  std::vector<std::string> changes;
  if (drop_training_state(dict)) changes.push_back(title + " is a checkpoint: taking the parameters it holds");
  try {
    for (const std::string& note : adopt_names(dict)) changes.push_back(title + ": " + note);
    if (const int folded = fold_batch_norms(dict); folded > 0)
      changes.push_back(fmt::format("{}: folded {} batch norms into the convolutions in front of them", title, folded));
    layers_of(dict);
  } catch (const Error& error) {
    fail<FormatError>("{}: {}", title, error.what());
  }
  for (const Parameter& parameter : dict.parameters)
    if (!parameter.packed() &&
        !std::ranges::all_of(parameter.values().view(), [](float v) { return std::isfinite(v); }))
      fail<FormatError>("{}: {} holds NaN or infinities; tools/inspect counts them", title, parameter.name);
  return changes;
}

}  // namespace nibblenet
