#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/core/random.h"

namespace nibblenet {

/// How images are mixed with others of their data set. With both, a fair coin chooses for every
/// image.
struct MixingOptions {
  double mixup = 0;   ///< alpha of mixup (Zhang 2018, arXiv 1710.09412); 0: none
  double cutmix = 0;  ///< alpha of CutMix (Yun 2019, arXiv 1905.04899); 0: none
  bool enabled() const { return mixup > 0 || cutmix > 0; }
};

/// How one image is mixed in one epoch.
struct ImageMix {
  static constexpr int32_t whole = 1 << 16;

  int64_t partner = 0;                           ///< index of the other image
  int32_t weight = whole;                        ///< mixup: of the image itself, out of `whole`
  bool pasted = false;                           ///< CutMix: the partner's rectangle replaces the image's
  int left = 0, top = 0, right = 0, bottom = 0;  ///< of the rectangle, in pixels; may be empty
  double share(int width, int height) const;     ///< of the image itself in the mix and in the target, in [0, 1]
};

/// Draws from Beta(alpha, alpha), as the ratio of two gamma variates (Marsaglia and Tsang 2000).
/// Requires: alpha > 0. Returns a number in [0, 1], also where a variate underflows.
double draw_beta(Random& random, double alpha);

/// Draws the mix of image `index` of `images`, which is width x height pixels: a function of seed,
/// epoch and index. The rectangle of CutMix has the sides of the image times sqrt(1 - lambda), a
/// uniform centre, and is clipped by the image.
ImageMix draw_mix(const MixingOptions& options, int64_t images, int width, int height, uint64_t seed, int64_t epoch,
                  uint64_t index);

/// Mixes `partner`, of the same size, into `image`: [height, width, 3] bytes, rounded to nearest.
void mix_pixels(std::span<uint8_t> image, std::span<const uint8_t> partner, int width, const ImageMix& mix);

/// Mirrors [height, width, 3] bytes left to right, in place.
void mirror_pixels(std::span<uint8_t> image, int width);

}  // namespace nibblenet
