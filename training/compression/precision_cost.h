#pragma once

#include <map>

#include "engine/core/progress.h"
#include "engine/io/dataset.h"
#include "engine/io/preprocess.h"
#include "layers/network/precision_choice.h"

namespace nibblenet {

/// `count` training images, or as many as there are, that a calibration on `calibrated` of them has
/// not seen: of every class the first ones behind those that it took. `training` is a training
/// split in file order, whose first images of every class the calibration took. Empty where it took
/// all.
Dataset images_behind(const Dataset& training, int64_t calibrated, int64_t count);

/// Whether a backend computes in int8 and bfloat16, fast or not.
bool computes_narrow(const Backend& backend);

/// Evaluates a packed model in float32, int8 and bfloat16, and returns the divergences of the last
/// two from the first. Progress counts images of all evaluations. Throws Interrupted when it asks
/// to stop. Requires: computes_narrow().
std::map<Precision, PrecisionDivergence> measure_precisions(Backend& backend, const StateDict& packed,
                                                            const Dataset& images, const Preprocess& preprocess,
                                                            int64_t batch_size, const OnProgress& on_progress = {});

}  // namespace nibblenet
