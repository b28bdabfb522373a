#include "engine/io/image_mixing.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibblenet {
namespace {

constexpr uint64_t mix_stream = 0x6D697800'00000000ULL;  // "mix", far from other streams

/// In (0, 1], so that its logarithm is finite.
double positive_uniform(Random& random) { return 1.0 - static_cast<double>(random.uniform()); }

double normal(Random& random) {
  const double radius = std::sqrt(-2 * std::log(positive_uniform(random)));
  return radius * std::cos(2 * std::numbers::pi * static_cast<double>(random.uniform()));
}

/// The logarithm of a gamma variate of shape `alpha`: the variate itself underflows for a small
/// one.
double log_gamma_variate(Random& random, double alpha) {
  if (alpha < 1) return log_gamma_variate(random, alpha + 1) + std::log(positive_uniform(random)) / alpha;
  const double d = alpha - 1.0 / 3.0, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = normal(random), root = 1 + c * x;
    if (root <= 0) continue;
    const double v = root * root * root;
    if (std::log(positive_uniform(random)) < 0.5 * x * x + d * (1 - v + std::log(v))) return std::log(d * v);
  }
}

}  // namespace

double ImageMix::share(int width, int height) const {
  if (!pasted) return static_cast<double>(weight) / whole;
  const double area = static_cast<double>(right - left) * (bottom - top);
  return 1 - area / (static_cast<double>(width) * height);
}

double draw_beta(Random& random, double alpha) {
  const double first = log_gamma_variate(random, alpha), second = log_gamma_variate(random, alpha);
  return 1 / (1 + std::exp(second - first));
}

ImageMix draw_mix(const MixingOptions& options, int64_t images, int width, int height, uint64_t seed, int64_t epoch,
                  uint64_t index) {
  Random random(random_bits(seed, mix_stream + static_cast<uint64_t>(epoch), index));
  ImageMix mix;
  mix.partner = static_cast<int64_t>(random.below(static_cast<uint64_t>(images)));
  const bool both = options.mixup > 0 && options.cutmix > 0;
  mix.pasted = both ? random.below(2) == 1 : options.cutmix > 0;
  const double lambda = draw_beta(random, mix.pasted ? options.cutmix : options.mixup);
  if (!mix.pasted) {
    mix.weight = static_cast<int32_t>(std::lround(lambda * ImageMix::whole));
    return mix;
  }
  const double side = std::sqrt(1 - lambda);
  const auto place = [&](int length, int& begin, int& end) {
    const auto cut = static_cast<int>(side * length),
               centre = static_cast<int>(random.below(static_cast<uint64_t>(length)));
    begin = std::max(0, centre - cut / 2);
    end = std::min(length, centre - cut / 2 + cut);
  };
  place(width, mix.left, mix.right);
  place(height, mix.top, mix.bottom);
  return mix;
}

void mix_pixels(std::span<uint8_t> image, std::span<const uint8_t> partner, int width, const ImageMix& mix) {
  if (mix.pasted) {
    const auto offset = [&](int y, int x) {
      return (static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x)) * 3;
    };
    for (int y = mix.top; y < mix.bottom; ++y)
      std::ranges::copy(partner.subspan(offset(y, mix.left), offset(0, mix.right - mix.left)),
                        image.begin() + static_cast<ptrdiff_t>(offset(y, mix.left)));
    return;
  }
  const int32_t other = ImageMix::whole - mix.weight;
  for (size_t i = 0; i < image.size(); ++i)
    image[i] =
        static_cast<uint8_t>((image[i] * mix.weight + partner[i] * other + ImageMix::whole / 2) / ImageMix::whole);
}

void mirror_pixels(std::span<uint8_t> image, int width) {
  const auto row = static_cast<size_t>(width) * 3;
  for (size_t begin = 0; begin < image.size(); begin += row)
    for (size_t left = begin, right = begin + row - 3; left < right; left += 3, right -= 3)
      std::swap_ranges(image.begin() + static_cast<ptrdiff_t>(left), image.begin() + static_cast<ptrdiff_t>(left) + 3,
                       image.begin() + static_cast<ptrdiff_t>(right));
}

}  // namespace nibblenet
