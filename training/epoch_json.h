#pragma once

#include "engine/io/json.h"
#include "training/trainer.h"

namespace nibblenet {

/// An epoch as checkpoints and reports have it: to_json() and from_json().
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(EpochReport, epoch, loss, train_accuracy, test_loss, test_accuracy, seconds,
                                   images_per_second, sparsity)

}  // namespace nibblenet
