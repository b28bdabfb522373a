#include "engine/io/image_folder.h"

#include <algorithm>
#include <atomic>
#include <tuple>

#include "engine/core/parallel.h"
#include "engine/core/threads.h"
#include "engine/io/image.h"

namespace nibblenet {
namespace {

// A data set lives in memory whole, so these bound what a hostile archive can ask for.
constexpr size_t max_total_bytes = size_t{16} << 30;  // compressed pictures, and again decoded ones
constexpr size_t max_pictures = 10'000'000;
constexpr unsigned max_threads = 8;
constexpr size_t pictures_at_once = 16;  // each thread takes so many

}  // namespace

bool ImageFolderReader::take(FileEntry& entry) {
  const auto& parts = entry.parts();
  const auto is_split = [&](size_t place) {
    return parts.size() >= place + 3 && (parts[place] == "train" || parts[place] == "test");
  };
  const size_t place = is_split(1) ? 1 : 0;
  if (!is_split(place)) return false;
  const std::string& folder = parts[place];
  const PictureKind kind = picture_kind(parts.back());
  if (kind == PictureKind::none) return false;

  const std::string root = place == 1 ? parts[0] : "";
  if (!root_) root_ = root;
  if (*root_ != root)
    fail<FormatError>("{} holds more than one data set: pictures in '{}' and '{}'", path_.string(), *root_ + "/train",
                      root + "/" + folder);
  const std::string& class_name = parts[place + 1];
  classes_.insert(class_name);
  if (classes_.size() > max_classes)
    fail<FormatError>("{} has more than {} classes, which is not supported", path_.string(), max_classes);
  if ((folder == "train") != (split_ == Split::train)) return true;

  Picture picture;
  picture.class_name = class_name;
  for (size_t i = place + 1; i + 1 < parts.size(); ++i) picture.folder += (i > place + 1 ? "/" : "") + parts[i];
  picture.file_name = parts.back();
  picture.location = entry.location();
  picture.on_disk = entry.on_disk();
  try {
    if (kind == PictureKind::unreadable)
      fail<FormatError>("{} is a kind of picture that cannot be read; supported are .jpg, .jpeg, .png and .bmp",
                        picture.location);
    if (picture.on_disk.empty()) picture.file = entry.read(max_image_file_bytes);
  } catch (const FormatError& error) {
    picture.problem = error.what();  // where it is the archive's, its next header is refused
  }
  file_bytes_ += picture.file.size();
  pictures_.push_back(std::move(picture));
  if (file_bytes_ > max_total_bytes || pictures_.size() > max_pictures)
    fail<FormatError>("{} has more than {} pictures or {} bytes of them in one split, which is not supported",
                      path_.string(), max_pictures, max_total_bytes);
  return true;
}

/// The classes in label order: CIFAR-10's ten when all are among them, else alphabetical.
std::vector<std::string> ImageFolderReader::label_order() const {
  const auto& cifar = cifar10_classes();
  const bool all_cifar = std::ranges::all_of(
      classes_, [&cifar](const std::string& name) { return std::ranges::find(cifar, name) != cifar.end(); });
  if (all_cifar) return {cifar.begin(), cifar.end()};
  return {classes_.begin(), classes_.end()};
}

void ImageFolderReader::order_and_limit(const std::vector<std::string>& classes, int64_t limit) {
  const int64_t most = images_per_class(limit, classes.size());
  for (Picture& picture : pictures_)
    picture.label = static_cast<uint8_t>(std::ranges::find(classes, picture.class_name) - classes.begin());
  const auto key = [](const Picture& picture) { return std::tie(picture.label, picture.folder, picture.file_name); };
  std::ranges::sort(pictures_, {}, key);
  const auto twice = std::ranges::adjacent_find(pictures_, {}, key);
  if (twice != pictures_.end()) fail<FormatError>("{} is there twice", twice->location);
  std::vector<int64_t> room(classes.size(), most);
  std::erase_if(pictures_, [&room](const Picture& picture) { return room[picture.label]-- <= 0; });
}

/// Of the pictures that cannot be read. Throws FormatError where they are not to be left out.
std::vector<std::string> ImageFolderReader::problems(const std::vector<std::string>& classes,
                                                     Unreadable unreadable) const {
  std::vector<std::string> found;
  std::vector<int64_t> seen(classes.size()), readable(classes.size());
  for (const Picture& picture : pictures_) {
    ++seen[picture.label];
    if (picture.problem.empty())
      ++readable[picture.label];
    else
      found.push_back(picture.problem);
  }
  if (!found.empty() && unreadable == Unreadable::refuse)
    fail<FormatError>("{}; {} of {} pictures cannot be read: mend them, or leave them out with --skip-unreadable",
                      found.front(), found.size(), pictures_.size());
  for (size_t label = 0; label < classes.size(); ++label)
    if (seen[label] > 0 && readable[label] == 0)
      fail<FormatError>("{}: none of the {} pictures of the class '{}' can be read, the first because {}",
                        path_.string(), seen[label], classes[label],
                        std::ranges::find(pictures_, label, &Picture::label)->problem);
  return found;
}

Dataset ImageFolderReader::finish(int64_t limit, Unreadable unreadable) {
  if (pictures_.empty())
    fail<FormatError>("{} holds no pictures in {}/<class>/", path_.string(), split_ == Split::train ? "train" : "test");
  Dataset dataset;
  dataset.description = "image folder";
  dataset.classes = label_order();
  order_and_limit(dataset.classes, limit);

  std::vector<RgbImage> decoded(pictures_.size());
  std::atomic<size_t> total = 0;
  const unsigned threads = std::min(default_threads(), max_threads);
  parallel_for(pictures_.size(), threads, pictures_at_once, [&](size_t i) {
    Picture& picture = pictures_[i];
    if (!picture.problem.empty()) return;
    try {
      if (!picture.on_disk.empty()) picture.file = read_file(picture.on_disk, max_image_file_bytes);
      decoded[i] = decode_image(picture.file, picture.location);
    } catch (const Error& error) {
      picture.problem = error.what();
    }
    picture.file = {};
    const size_t so_far = total += decoded[i].pixels.size();
    if (so_far > max_total_bytes)
      fail<FormatError>("{} has more than {} bytes of pixels in one split; use a limit", path_.string(),
                        max_total_bytes);
  });
  dataset.skipped = problems(dataset.classes, unreadable);

  dataset.images.reserve(decoded.size());
  dataset.labels.reserve(decoded.size());
  dataset.pixels.reserve(total);
  for (size_t i = 0; i < decoded.size(); ++i) {
    if (!pictures_[i].problem.empty()) continue;
    dataset.images.push_back({decoded[i].width, decoded[i].height, dataset.pixels.size()});
    dataset.labels.push_back(pictures_[i].label);
    dataset.pixels.insert(dataset.pixels.end(), decoded[i].pixels.begin(), decoded[i].pixels.end());
    decoded[i].pixels = {};
  }
  return dataset;
}

}  // namespace nibblenet
