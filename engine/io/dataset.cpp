#include "engine/io/dataset.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/io/archive.h"
#include "engine/io/cifar10.h"
#include "engine/io/holdout.h"
#include "engine/io/image_folder.h"

namespace nibblenet {
namespace {

constexpr std::array<std::pair<Split, std::string_view>, 4> split_names = {
    {{Split::train, "train"}, {Split::validation, "validation"}, {Split::fitting, "fitting"}, {Split::test, "test"}}};

}  // namespace

std::string_view to_string(Split split) { return split_names.at(static_cast<size_t>(split)).second; }

Split parse_split(std::string_view name) {
  for (const auto& [split, its_name] : split_names)
    if (its_name == name) return split;
  fail<UsageError>("split {}: expected test, train, validation or fitting", name);
}

int64_t images_per_class(int64_t limit, size_t classes) {
  if (limit == 0) return std::numeric_limits<int64_t>::max();
  if (limit < 0 || static_cast<size_t>(limit) < classes)
    fail<UsageError>("a limit of {} images leaves none for some of the {} classes; use 0 (no limit) or at least {}",
                     limit, classes, classes);
  return limit / static_cast<int64_t>(classes);
}

Dataset load_dataset(const std::filesystem::path& path, Split split, int64_t limit, Unreadable unreadable) {
  if (limit < 0) fail<UsageError>("a limit of {} images makes no sense; use 0 for no limit", limit);
  if (split == Split::validation || split == Split::fitting)
    return part_of(load_dataset(path, Split::train, 0, unreadable), split, limit);
  // One pass, since an archive can only be read forwards: all readers look at every file.
  Cifar10Reader binary(path, split, CifarVersion::binary), python(path, split, CifarVersion::python);
  ImageFolderReader folder(path, split);
  walk_files(path, [&](FileEntry& entry) {
    if (!binary.take(entry) && !python.take(entry)) folder.take(entry);
  });
  Cifar10Reader& batches = binary.found() ? binary : python;
  if (batches.found() && folder.found())
    fail<FormatError>("{} holds both CIFAR-10 batches and an image folder; keep them apart", path.string());
  if (batches.found()) return batches.finish(limit);
  if (folder.found()) return folder.finish(limit, unreadable);
  fail<FormatError>(
      "{} holds no data set; supported are CIFAR-10's binary version (data_batch_1.bin … test_batch.bin), its Python "
      "version (data_batch_1 … test_batch) and image folders (train/<class>/*.jpg|jpeg|png|bmp, test/<class>/…), as a "
      "folder, .tar or .tar.gz",
      path.string());
}

Dataset images_at(const Dataset& all, std::span<const size_t> positions) {
  Dataset part{.description = all.description,
               .classes = all.classes,
               .images = {},
               .labels = {},
               .pixels = {},
               .skipped = all.skipped};
  const auto length_of = [](const Dataset::Image& image) {
    return size_t{3} * static_cast<size_t>(image.width) * static_cast<size_t>(image.height);
  };
  size_t bytes = 0;
  for (const size_t i : positions) bytes += length_of(all.images.at(i));
  part.images.reserve(positions.size());
  part.labels.reserve(positions.size());
  part.pixels.reserve(bytes);
  for (const size_t i : positions) {
    const Dataset::Image& image = all.images[i];
    const auto first = all.pixels.begin() + static_cast<std::ptrdiff_t>(image.offset);
    part.images.push_back({image.width, image.height, part.pixels.size()});
    part.labels.push_back(all.labels[i]);
    part.pixels.insert(part.pixels.end(), first, first + static_cast<std::ptrdiff_t>(length_of(image)));
  }
  return part;
}

Dataset subset(const Dataset& all, const std::function<bool(int64_t position, int64_t size)>& keep) {
  std::array<int64_t, max_classes> sizes{}, seen{};
  for (const uint8_t label : all.labels) ++sizes[label];
  std::vector<size_t> positions;
  for (size_t i = 0; i < all.images.size(); ++i)
    if (const uint8_t label = all.labels[i]; keep(seen[label]++, sizes[label])) positions.push_back(i);
  return images_at(all, positions);
}

}  // namespace nibblenet
