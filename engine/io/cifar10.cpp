#include "engine/io/cifar10.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "engine/io/cifar10_python.h"

namespace nibblenet {
namespace {

constexpr size_t max_batch_bytes = size_t{1} << 30;  // CIFAR-10's own have 30,730,000
constexpr size_t max_names_bytes = size_t{1} << 16;

std::vector<std::string> parse_class_names(const std::string& location, const std::vector<uint8_t>& text) {
  std::vector<std::string> names;
  std::string name;
  const auto end_line = [&] {
    if (!name.empty()) names.push_back(std::exchange(name, {}));
  };
  for (const uint8_t byte : text) {
    if (byte == '\n') {
      end_line();
    } else if (byte >= 0x20 && byte != 0x7F) {
      name.push_back(static_cast<char>(byte));
    } else if (byte != '\r') {
      fail<FormatError>("{} is not a list of class names: it holds the control character {:#04x}", location, byte);
    }
  }
  end_line();
  if (names.empty() || names.size() > max_classes)
    fail<FormatError>("{} lists {} class names; 1 to {} are possible", location, names.size(), max_classes);
  return names;
}

std::string_view ending(CifarVersion version) { return version == CifarVersion::binary ? ".bin" : ""; }

}  // namespace

const std::array<std::string, 10>& cifar10_classes() {
  static const std::array<std::string, 10> names = {"airplane", "automobile", "bird",  "cat",  "deer",
                                                    "dog",      "frog",       "horse", "ship", "truck"};
  return names;
}

int Cifar10Reader::batch_number(std::string_view name, Split split) const {
  if (split == Split::test) return name == fmt::format("test_batch{}", ending(version_)) ? 1 : 0;
  for (int number = 1; number <= cifar_train_files; ++number) {
    if (name == fmt::format("data_batch_{}{}", number, ending(version_))) return number;
  }
  return 0;
}

bool Cifar10Reader::take(FileEntry& entry) {
  if (entry.parts().size() > 2) return false;
  const std::string& name = entry.parts().back();
  if (name == (version_ == CifarVersion::binary ? "batches.meta.txt" : "batches.meta")) {
    if (names_) fail<FormatError>("{} is a second list of class names in {}", entry.location(), path_.string());
    names_ = {entry.location(), entry.read(max_names_bytes)};
    return true;
  }
  const int number = batch_number(name, split_);
  if (number == 0) {
    const bool other_split = batch_number(name, split_ == Split::train ? Split::test : Split::train) != 0;
    found_ = found_ || other_split;
    return other_split;
  }
  found_ = true;
  if (files_.contains(number))
    fail<FormatError>("{} and {} are the same batch: keep one data set in {}", files_.at(number).location,
                      entry.location(), path_.string());
  files_.emplace(number, File{entry.location(), entry.read(max_batch_bytes)});
  return true;
}

std::vector<std::string> Cifar10Reader::class_names() const {
  if (!names_) return {cifar10_classes().begin(), cifar10_classes().end()};
  if (version_ == CifarVersion::binary) return parse_class_names(names_->location, names_->content);
  return parse_class_names(names_->location, names_of_pickle(names_->content, names_->location));
}

Dataset Cifar10Reader::finish(int64_t limit) {
  Dataset dataset;
  dataset.classes = class_names();
  if (std::ranges::equal(dataset.classes, cifar10_classes())) {
    dataset.description = version_ == CifarVersion::binary ? "CIFAR-10 (binary)" : "CIFAR-10 (Python)";
  } else if (std::ranges::equal(dataset.classes, standin_classes())) {
    dataset.description = "stand-in";
  } else {
    dataset.description = fmt::format("CIFAR-10 format, {} classes", dataset.classes.size());
  }

  if (files_.empty())
    fail<FormatError>("{} holds no {}{}", path_.string(), split_ == Split::test ? "test_batch" : "data_batch_*",
                      ending(version_));
  // A gap would train on fewer images than the user thinks.
  if (const int last = files_.rbegin()->first; last != static_cast<int>(files_.size()))
    fail<FormatError>("{} holds data_batch_{}{} but only {} of the {} files up to it", path_.string(), last,
                      ending(version_), files_.size(), last);

  std::vector<int64_t> room(dataset.classes.size(), images_per_class(limit, dataset.classes.size()));
  size_t records = 0;
  for (const auto& [number, file] : files_) records += file.content.size() / cifar_record_bytes;
  if (limit > 0) records = std::min(records, static_cast<size_t>(limit));
  dataset.images.reserve(records);
  dataset.labels.reserve(records);
  dataset.pixels.reserve(records * 3 * cifar_plane_bytes);
  while (!files_.empty()) {
    append(dataset, files_.begin()->second, room);
    files_.erase(files_.begin());  // each file's bytes go as soon as its pixels are there
  }
  return dataset;
}

/// `room` is how many more images of each class are wanted.
void Cifar10Reader::append(Dataset& dataset, const File& file, std::vector<int64_t>& room) const {
  std::vector<uint8_t> unpickled;
  if (version_ == CifarVersion::python) unpickled = records_of_pickle(file.content, file.location);
  const std::vector<uint8_t>& records = version_ == CifarVersion::python ? unpickled : file.content;
  if (records.empty() || records.size() % cifar_record_bytes != 0)
    fail<FormatError>("{} has {} bytes; expected one or more records of {} bytes (a label and a 32x32 RGB image)",
                      file.location, records.size(), cifar_record_bytes);
  for (size_t at = 0; at < records.size(); at += cifar_record_bytes) {
    const uint8_t label = records[at];
    if (label >= room.size())
      fail<FormatError>("{}: record {} has label {}; expected 0 to {}", file.location, at / cifar_record_bytes, label,
                        room.size() - 1);
    if (room[label] == 0) continue;
    --room[label];
    const size_t offset = dataset.pixels.size();
    dataset.images.push_back({cifar_side, cifar_side, offset});
    dataset.labels.push_back(label);
    dataset.pixels.resize(offset + 3 * cifar_plane_bytes);
    const uint8_t* planes = records.data() + at + 1;
    uint8_t* pixels = dataset.pixels.data() + offset;
    for (size_t i = 0; i < cifar_plane_bytes; ++i) {
      for (size_t channel = 0; channel < 3; ++channel)
        pixels[3 * i + channel] = planes[channel * cifar_plane_bytes + i];
    }
  }
}

}  // namespace nibblenet
