#pragma once

#include <cstdint>
#include <vector>

#include "engine/core/resample.h"

namespace nibblenet::testing {

/// images [N, height, width, 3] resized, cropped and normalised as `tables` say, but without
/// rounding the resized ones to bytes: [N, crop, crop, 3].
inline std::vector<double> unrounded(const ResampleTables& tables, const std::vector<uint8_t>& images) {
  const auto weight = [](const ResampleAxis& axis, int i, int t) {
    return static_cast<double>(axis.weights[static_cast<size_t>(i * axis.taps + t)]) / (1 << resample_precision);
  };
  std::vector<double> result;
  const int bytes = tables.height * tables.width * 3;
  for (size_t image = 0; image < images.size(); image += static_cast<size_t>(bytes))
    for (int i = 0; i < tables.crop; ++i)
      for (int j = 0; j < tables.crop; ++j)
        for (int c = 0; c < 3; ++c) {
          double value = 0;
          for (int a = 0; a < tables.vertical.count[static_cast<size_t>(i)]; ++a)
            for (int b = 0; b < tables.horizontal.count[static_cast<size_t>(j)]; ++b) {
              const int row = tables.vertical.first[static_cast<size_t>(i)] + a;
              const int column = tables.horizontal.first[static_cast<size_t>(j)] + b;
              value += weight(tables.vertical, i, a) * weight(tables.horizontal, j, b) *
                       images[image + static_cast<size_t>((row * tables.width + column) * 3 + c)];
            }
          const auto& table = tables.normalized[static_cast<size_t>(c)];
          const auto zero = static_cast<double>(table[0]);
          result.push_back(zero + value / 255 * (static_cast<double>(table[255]) - zero));
        }
  return result;
}

}  // namespace nibblenet::testing
