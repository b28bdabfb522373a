#include "engine/io/dataset.h"

#include <limits>

#include "engine/io/archive.h"
#include "engine/io/cifar10.h"
#include "engine/io/image_folder.h"

namespace nibblenet {

int64_t images_per_class(int64_t limit, size_t classes) {
  if (limit == 0) return std::numeric_limits<int64_t>::max();
  if (limit < 0 || static_cast<size_t>(limit) < classes)
    fail<UsageError>("a limit of {} images leaves none for some of the {} classes; use 0 (no limit) or at least {}",
                     limit, classes, classes);
  return limit / static_cast<int64_t>(classes);
}

Dataset load_dataset(const std::filesystem::path& path, Split split, int64_t limit, Unreadable unreadable) {
  if (limit < 0) fail<UsageError>("a limit of {} images makes no sense; use 0 for no limit", limit);
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

Dataset subset(const Dataset& all, const std::function<bool(int64_t position, int64_t size)>& keep) {
  std::array<int64_t, 256> sizes{}, seen{};
  for (const uint8_t label : all.labels) ++sizes[label];
  Dataset part{.description = all.description,
               .classes = all.classes,
               .images = {},
               .labels = {},
               .pixels = all.pixels,
               .skipped = all.skipped};
  for (size_t i = 0; i < all.images.size(); ++i) {
    const uint8_t label = all.labels[i];
    if (!keep(seen[label]++, sizes[label])) continue;
    part.images.push_back(all.images[i]);
    part.labels.push_back(label);
  }
  return part;
}

}  // namespace nibblenet
