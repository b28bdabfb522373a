#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/tensor.h"

namespace nibblenet {

/// Labels are bytes.
inline constexpr size_t max_classes = 256;

/// The part of a data set to read. The training images fall into two parts (engine/io/holdout.h):
/// `validation`, which is held out to choose by, and `fitting`, all others.
enum class Split : uint8_t { train, validation, fitting, test };

/// Its name in flags and files: "validation".
std::string_view to_string(Split split);
/// The split of that name. Throws UsageError with the list of names.
Split parse_split(std::string_view name);

/// What becomes of a picture in an image folder that cannot be read: an error, or it is left out.
enum class Unreadable : uint8_t { refuse, skip };

/// Labelled RGB images in memory as bytes. Sizes may differ, since image folders may hold photos.
struct Dataset {
  std::string description;           ///< for reports: "CIFAR-10 (binary)", "image folder", "stand-in"
  std::vector<std::string> classes;  ///< in label order
  struct Image {
    int width = 0;
    int height = 0;
    size_t offset = 0;  ///< its first byte in `pixels`; rows of RGB RGB …, top first
  };
  std::vector<Image> images;
  std::vector<uint8_t> labels;  ///< one per image
  std::vector<uint8_t> pixels;
  std::vector<std::string> skipped;  ///< why each picture that was left out cannot be read

  int64_t size() const { return static_cast<int64_t>(images.size()); }
  /// Whether write_standin drew the images.
  bool stand_in() const { return description == "stand-in"; }
};

/// Reads one split of the data set at `path`:
///  - CIFAR-10's binary version: a folder with data_batch_1..5.bin and test_batch.bin (also one
///    level down, as in cifar-10-batches-bin/), or its .tar.gz or .tar;
///  - CIFAR-10's Python version, torchvision's: the same with data_batch_1..5 and test_batch, which
///    are pickled (cifar-10-batches-py/). The binary version is taken where both are there;
///  - an image folder with train/<class>/*.jpg|jpeg|png|bmp and test/<class>/…, plain or inside a
///    .tar or .tar.gz (also one level down). Labels follow CIFAR-10's order when every class is one
///    of its ten, else the alphabetical order. Images are in label order, then by file name;
///  - a stand-in made by write_standin(), in CIFAR-10's format with its own class names.
/// `limit` > 0 keeps the first limit/classes images of every class in file order: it is rounded
/// down to a multiple of the class count. Throws UsageError for a limit below the class count.
/// Throws IoError or FormatError naming the file: broken archive, wrong record length, label out of
/// range, undecodable image, nothing in the split. Pictures that are left out count for the limit;
/// a class that has no others is an error all the same. The parts of the training images are taken
/// from all of them, whatever the limit, and only their own pixels are kept; throws UsageError
/// where no class has two images.
Dataset load_dataset(const std::filesystem::path& path, Split split, int64_t limit = 0,
                     Unreadable unreadable = Unreadable::refuse);

/// The images at these positions, in their order and with their pixels alone.
Dataset images_at(const Dataset& all, std::span<const size_t> positions);

/// The images for which keep(position within the class, size of the class) is true, in order and
/// with their pixels alone.
Dataset subset(const Dataset& all, const std::function<bool(int64_t position, int64_t size)>& keep);

/// CIFAR-10's class names in label order.
const std::array<std::string, 10>& cifar10_classes();

/// The stand-in's class names in label order.
const std::array<std::string, 10>& standin_classes();

/// The images of each class that a limit leaves; 0: no limit. Throws UsageError when it is
/// negative, or above 0 and below the class count.
int64_t images_per_class(int64_t limit, size_t classes);

/// Draws the stand-in, a data set of ten classes of 32 x 32 images, and writes it into `folder` in
/// CIFAR-10's binary format, over an older stand-in. The classes are ten shapes and textures in
/// random colours, positions, sizes and noise: a network has to learn form rather than mean colour.
/// The bytes depend on `seed` and the counts alone, on every machine. Throws UsageError for counts
/// outside 1 to 10^6 or a folder that holds another data set, IoError when it cannot write.
void write_standin(const std::filesystem::path& folder, int64_t train_images, int64_t test_images, uint64_t seed);

}  // namespace nibblenet
