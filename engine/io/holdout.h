#pragma once

#include <cstddef>
#include <vector>

#include "engine/io/dataset.h"

namespace nibblenet {

/// Metadata key of a model whose training left the held-out images out; its value says how many
/// there were, and which epoch they chose.
inline constexpr const char* validation_key = "validation";

/// Positions, ascending, of the training images that are held out for validation: of every class a
/// tenth, rounded down, but one image of two to nine, and none of a class of one. Those are the
/// images with the smallest XXH3 (64 bits) of their RGB bytes, whose seed is the width; of equal
/// images the first ones. So the pictures alone decide: the list is the same on every machine and
/// for every order of files. It is fixed for good, since models depend on it: 5,000 of CIFAR-10's
/// 50,000 training images. Requires: `training` is a whole training split.
std::vector<size_t> held_out(const Dataset& training);

/// The held-out images (Split::validation) or the others (Split::fitting) of a whole training
/// split, in its order and with their pixels alone. `limit` is as in load_dataset(). Throws
/// UsageError for another split, and where no class has two images.
Dataset part_of(const Dataset& training, Split part, int64_t limit = 0);

}  // namespace nibblenet
