#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/core/tensor.h"

namespace nibblenet {

/// The part of a data set to read.
enum class Split : uint8_t { train, test };

/// Labelled RGB images in memory as bytes, all of one size or each of its own (image folders may
/// hold photos).
struct Dataset {
  std::string description;           ///< "CIFAR-10 (binary)", "image folder", "stand-in", for reports
  std::vector<std::string> classes;  ///< in label order
  struct Image {
    int width = 0;
    int height = 0;
    size_t offset = 0;  ///< of its first byte in `pixels`; rows of RGB RGB …, top first
  };
  std::vector<Image> images;
  std::vector<uint8_t> labels;  ///< one per image
  std::vector<uint8_t> pixels;

  int64_t size() const { return static_cast<int64_t>(images.size()); }
  /// Whether write_standin drew the images.
  bool stand_in() const { return description == "stand-in"; }
};

/// Reads one split of whatever lies at `path`:
///  - CIFAR-10 binary version: a folder with data_batch_1..5.bin and test_batch.bin (also one level
///    down, in cifar-10-batches-bin/), or its .tar.gz / .tar;
///  - an image folder with train/<class>/*.jpg|jpeg|png and test/<class>/…, plain or inside a .tar
///    / .tar.gz (also one level down). When every class is one of CIFAR-10's ten, labels follow
///    CIFAR-10's order, else the
///    alphabetical one. Images are in label order, then by file name.
///  - a stand-in made by write_standin (the same binary format, class names in batches.meta.txt).
/// `limit` > 0 keeps the first limit/classes images of every class (in file order), so that it is
/// rounded down to a multiple of the class count. Throws UsageError (limit below the class count),
/// IoError or FormatError (broken archive, wrong record length, label out of range, undecodable
/// image, nothing in the split) naming the file.
Dataset load_dataset(const std::filesystem::path& path, Split split, int64_t limit = 0);

/// The images of which `keep`(position within the class, size of the class) holds, in order.
Dataset subset(const Dataset& all, const std::function<bool(int64_t position, int64_t size)>& keep);

/// CIFAR-10's class names in label order.
const std::array<std::string, 10>& cifar10_classes();

/// The stand-in's class names in label order.
const std::array<std::string, 10>& standin_classes();

/// How many images of each class a limit leaves. Throws UsageError when it is negative or below the
/// class count.
int64_t images_per_class(int64_t limit, size_t classes);

/// Draws a 10-class data set of 32x32 images procedurally and writes it in CIFAR-10's binary format
/// into `folder` (data_batch_1.bin … data_batch_5.bin, test_batch.bin, batches.meta.txt), replacing
/// an older stand-in. Ten shapes and textures in random colours, positions, sizes and noise, so
/// that a network has to learn form rather than mean colour. A function of `seed` and the counts
/// alone: the same bytes on every machine. Throws UsageError for counts below 1 or a folder that
/// holds another data set, IoError when it cannot write.
void write_standin(const std::filesystem::path& folder, int64_t train_images, int64_t test_images, uint64_t seed);

}  // namespace nibblenet
