#include "engine/io/holdout.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

namespace nibblenet {
namespace {

/// Orders the images of a class: the first ones are held out.
uint64_t rank_of(const Dataset& dataset, const Dataset::Image& image) {
  const size_t bytes = size_t{3} * static_cast<size_t>(image.width) * static_cast<size_t>(image.height);
  return XXH3_64bits_withSeed(dataset.pixels.data() + image.offset, bytes, static_cast<XXH64_hash_t>(image.width));
}

size_t count_held_out(size_t images_of_class) {
  return images_of_class < 2 ? 0 : std::max<size_t>(1, images_of_class / 10);
}

}  // namespace

std::vector<size_t> held_out(const Dataset& training) {
  std::vector<std::vector<std::pair<uint64_t, size_t>>> ranked(max_classes);  // rank and position, by label
  for (size_t i = 0; i < training.images.size(); ++i)
    ranked[training.labels[i]].emplace_back(rank_of(training, training.images[i]), i);
  std::vector<size_t> positions;
  for (auto& of_class : ranked) {
    std::ranges::sort(of_class);
    for (size_t i = 0; i < count_held_out(of_class.size()); ++i) positions.push_back(of_class[i].second);
  }
  std::ranges::sort(positions);
  return positions;
}

Dataset part_of(const Dataset& training, Split part, int64_t limit) {
  if (part != Split::validation && part != Split::fitting)
    fail<UsageError>("the {} images are no part of the training images", to_string(part));
  const std::vector<size_t> held = held_out(training);
  if (held.empty()) throw UsageError("no training image can be held out: a class needs two or more of them");
  std::vector<int64_t> room(max_classes, images_per_class(limit, training.classes.size()));
  std::vector<size_t> positions;
  for (size_t i = 0; i < training.images.size(); ++i) {
    if (std::ranges::binary_search(held, i) != (part == Split::validation)) continue;
    if (room[training.labels[i]]-- > 0) positions.push_back(i);
  }
  return images_at(training, positions);
}

}  // namespace nibblenet
