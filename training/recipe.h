#pragma once

#include "engine/io/image_mixing.h"

namespace nibblenet {

/// Parts of a training recipe that a run may leave out; the default is without any.
struct RecipeOptions {
  double ema = 0;              ///< decay of the weights' moving average, which is then the model; 0: there is none
  double label_smoothing = 0;  ///< part of each label that all classes share (Szegedy 2016, arXiv 1512.00567)
  MixingOptions mixing;        ///< of training images and their labels
  double bias_lr = 1;          ///< learning rate of biases over that of weights (Page 2018)
  bool whitened = false;       ///< the first filters began as eigenvectors of training patches
};

}  // namespace nibblenet
