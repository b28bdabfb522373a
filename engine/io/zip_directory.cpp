#include "engine/io/zip_directory.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "engine/core/error.h"
#include "engine/io/safetensors_header.h"
#include "engine/quant/text.h"

namespace nibblenet {
namespace {

constexpr uint32_t local_signature = 0x04034B50;
constexpr uint32_t central_signature = 0x02014B50;
constexpr uint32_t end_signature = 0x06054B50;
constexpr uint32_t zip64_end_signature = 0x06064B50;
constexpr uint32_t zip64_locator_signature = 0x07064B50;
constexpr size_t local_bytes = 30;
constexpr size_t central_bytes = 46;
constexpr size_t end_bytes = 22;
constexpr size_t zip64_end_bytes = 56;
constexpr size_t zip64_locator_bytes = 20;
constexpr size_t longest_comment = 0xFFFF;
constexpr size_t longest_tail = zip64_end_bytes + zip64_locator_bytes + end_bytes + longest_comment;
// More than local header, name, extra field and data descriptor of an entry take.
constexpr uint64_t most_beside_content = local_bytes + 2 * 0xFFFF + 24;
constexpr uint64_t largest_directory = uint64_t{256} << 20;
constexpr uint16_t zip64_extra = 1;
constexpr uint16_t encrypted_flag = 1;

/// Little-endian number of type T at `offset`, which the caller has checked.
template <class T>
T number(std::span<const uint8_t> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

std::string_view text(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// An entry of the central directory.
struct DirectoryEntry {
  std::string_view name;
  uint16_t method = 0;  ///< 0: stored
  uint32_t crc = 0;
  uint64_t size = 0;    ///< bytes of the content
  uint64_t stored = 0;  ///< bytes in the archive
  uint64_t header = 0;  ///< place of the local header
};

/// The place of the central directory.
struct Directory {
  uint64_t entries = 0;
  uint64_t begin = 0;
  uint64_t size = 0;
};

class ZipReader {
 public:
  /// `archive` begins at byte `first` of the file and reaches to its end. Other than for
  /// find_directory(), `first` must be 0.
  ZipReader(std::span<const uint8_t> archive, const std::string& file, uint64_t first = 0)
      : archive_(archive), first_(first), file_(file) {}

  std::vector<ZipEntry> read() {
    const Directory directory = find_directory();
    std::vector<DirectoryEntry> entries = read_directory(
        archive_.subspan(static_cast<size_t>(directory.begin), static_cast<size_t>(directory.size)), directory.entries);
    std::ranges::sort(entries, {}, &DirectoryEntry::header);
    std::vector<ZipEntry> result;
    result.reserve(entries.size());
    uint64_t free = 0;  // entries so far end here
    for (const DirectoryEntry& entry : entries) {
      if (entry.header < free) refuse("entry {} overlaps the one before it", in_quotes(entry.name));
      result.push_back(locate(entry, directory.begin));
      free = static_cast<uint64_t>(result.back().bytes.data() + result.back().bytes.size() - archive_.data());
    }
    return result;
  }

  Directory find_directory() const {
    const size_t end = find_end();
    if (number<uint16_t>(archive_, end + 4) != 0 || number<uint16_t>(archive_, end + 6) != 0)
      refuse("it is one of several volumes");
    Directory directory{number<uint16_t>(archive_, end + 10), number<uint32_t>(archive_, end + 16),
                        number<uint32_t>(archive_, end + 12)};
    uint64_t limit = first_ + end;
    if (end >= zip64_locator_bytes &&
        number<uint32_t>(archive_, end - zip64_locator_bytes) == zip64_locator_signature) {
      limit = first_ + read_zip64_end(end - zip64_locator_bytes, directory);
    } else if (directory.entries == 0xFFFF || directory.begin == 0xFFFFFFFF || directory.size == 0xFFFFFFFF) {
      refuse("it needs a zip64 end record but has none");
    }
    if (directory.begin > limit || directory.size > limit - directory.begin)
      refuse("its directory should be {} bytes at {}, but the archive has {}", directory.size, directory.begin, limit);
    if (directory.entries > directory.size / central_bytes)
      refuse("its directory of {} bytes cannot hold {} entries", directory.size, directory.entries);
    return directory;
  }

  /// The entries of a directory. Their names point into `rest`.
  std::vector<DirectoryEntry> read_directory(std::span<const uint8_t> rest, uint64_t count) const {
    std::vector<DirectoryEntry> entries;
    entries.reserve(static_cast<size_t>(count));
    std::set<std::string_view> names;
    for (uint64_t i = 0; i < count; ++i) {
      entries.push_back(read_central(rest));
      check_name(entries.back().name);
      if (!names.insert(entries.back().name).second)
        refuse("the entry {} occurs twice", in_quotes(entries.back().name));
    }
    if (!rest.empty()) refuse("{} bytes of its directory belong to no entry", rest.size());
    return entries;
  }

  /// Throws FormatError where a file of `size` bytes cannot consist of these entries.
  void check_size(const Directory& directory, const std::vector<DirectoryEntry>& entries, uint64_t size) const {
    uint64_t contents = 0;
    for (const DirectoryEntry& entry : entries) {
      if (entry.stored > size - contents) refuse("the entry {} reaches beyond the archive", in_quotes(entry.name));
      contents += entry.stored;
    }
    const uint64_t most = contents + directory.size + longest_tail + entries.size() * most_beside_content;
    if (size > most) refuse("it has {} bytes, of which at least {} belong to no entry", size, size - most);
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail<FormatError>("{}: broken zip archive: {}; fetch or write the file again", file_,
                      fmt::format(format, std::forward<Args>(args)...));
  }

  /// The place of the end record. Searches backwards, since a comment of any content may follow it.
  size_t find_end() const {
    if (archive_.size() >= end_bytes)
      for (size_t at = archive_.size() - end_bytes;; --at) {
        const size_t behind = archive_.size() - at - end_bytes;
        if (number<uint32_t>(archive_, at) == end_signature && number<uint16_t>(archive_, at + 20) == behind) return at;
        if (at == 0 || behind == longest_comment) break;
      }
    refuse("it has no end record, so it is cut off or something follows it");
  }

  /// Replaces the fields of the plain end record by those of the zip64 one. Both must agree unless
  /// the plain field is full. Returns the place of the zip64 record.
  size_t read_zip64_end(size_t locator, Directory& directory) const {
    const auto at = number<uint64_t>(archive_, locator + 8);
    if (at < first_ || locator < zip64_end_bytes || at - first_ > locator - zip64_end_bytes ||
        number<uint32_t>(archive_, static_cast<size_t>(at - first_)) != zip64_end_signature)
      refuse("there is no zip64 end record where its locator points");
    const auto record = archive_.subspan(static_cast<size_t>(at - first_));
    const Directory large{number<uint64_t>(record, 32), number<uint64_t>(record, 48), number<uint64_t>(record, 40)};
    if (number<uint32_t>(record, 16) != 0 || number<uint32_t>(record, 20) != 0) refuse("it is one of several volumes");
    if ((directory.entries != 0xFFFF && directory.entries != large.entries) ||
        (directory.begin != 0xFFFFFFFF && directory.begin != large.begin) ||
        (directory.size != 0xFFFFFFFF && directory.size != large.size))
      refuse("its two end records contradict each other");
    directory = large;
    return static_cast<size_t>(at - first_);
  }

  /// Takes one entry off the front of `rest`.
  DirectoryEntry read_central(std::span<const uint8_t>& rest) const {
    if (rest.size() < central_bytes || number<uint32_t>(rest, 0) != central_signature)
      refuse("its directory is not where it should be");
    const size_t name_bytes = number<uint16_t>(rest, 28);
    const size_t extra_bytes = number<uint16_t>(rest, 30);
    const size_t all = central_bytes + name_bytes + extra_bytes + number<uint16_t>(rest, 32);
    if (all > rest.size()) refuse("its directory ends in the middle of an entry");
    DirectoryEntry entry{.name = text(rest.subspan(central_bytes, name_bytes)),
                         .method = number<uint16_t>(rest, 10),
                         .crc = number<uint32_t>(rest, 16),
                         .size = number<uint32_t>(rest, 24),
                         .stored = number<uint32_t>(rest, 20),
                         .header = number<uint32_t>(rest, 42)};
    if ((number<uint16_t>(rest, 8) & encrypted_flag) != 0) refuse("the entry {} is encrypted", in_quotes(entry.name));
    read_zip64(entry, rest.subspan(central_bytes + name_bytes, extra_bytes));
    if (entry.method == 0 && entry.stored != entry.size)
      refuse("the entry {} stores {} bytes as {}", in_quotes(entry.name), entry.size, entry.stored);
    rest = rest.subspan(all);
    return entry;
  }

  /// Reads the fields that are full in the entry from its zip64 extra field, which holds only
  /// those, in this order.
  void read_zip64(DirectoryEntry& entry, std::span<const uint8_t> extra) const {
    std::vector<uint64_t*> full;
    for (uint64_t* value : {&entry.size, &entry.stored, &entry.header})
      if (*value == 0xFFFFFFFF) full.push_back(value);
    while (!full.empty() && extra.size() >= 4) {
      const size_t length = number<uint16_t>(extra, 2);
      if (length > extra.size() - 4) break;
      if (number<uint16_t>(extra, 0) == zip64_extra && length >= 8 * full.size()) {
        for (size_t i = 0; i < full.size(); ++i) *full[i] = number<uint64_t>(extra, 4 + 8 * i);
        return;
      }
      extra = extra.subspan(4 + length);
    }
    if (!full.empty()) refuse("the entry {} lacks its zip64 sizes", in_quotes(entry.name));
  }

  void check_name(std::string_view name) const {
    if (name.empty() || name.front() == '/' || name.find('\0') != name.npos || name.find('\\') != name.npos ||
        std::ranges::count(split(name, '/'), "..") > 0)
      refuse("the entry name {} is not allowed", in_quotes(name));
  }

  ZipEntry locate(const DirectoryEntry& entry, uint64_t limit) const {
    const auto lies_outside = [&]() { refuse("the entry {} reaches beyond the archive", in_quotes(entry.name)); };
    if (entry.header > limit || limit - entry.header < local_bytes) lies_outside();
    const auto local = archive_.subspan(static_cast<size_t>(entry.header), static_cast<size_t>(limit - entry.header));
    if (number<uint32_t>(local, 0) != local_signature) refuse("there is no entry {}", in_quotes(entry.name));
    const size_t name_bytes = number<uint16_t>(local, 26);
    // The local extra field pads the content to a multiple of 64 bytes; it differs from the
    // directory's.
    const size_t begin = local_bytes + name_bytes + number<uint16_t>(local, 28);
    if (begin > local.size() || entry.stored > local.size() - begin) lies_outside();
    if (text(local.subspan(local_bytes, name_bytes)) != entry.name || number<uint16_t>(local, 8) != entry.method)
      refuse("the entry {} and the directory contradict each other", in_quotes(entry.name));
    return {entry.name, local.subspan(begin, static_cast<size_t>(entry.stored)), entry.method != 0, entry.crc};
  }

  std::span<const uint8_t> archive_;
  uint64_t first_;
  const std::string& file_;
};

}  // namespace

bool looks_like_zip(std::span<const uint8_t> bytes) {
  return bytes.size() >= sizeof local_signature && number<uint32_t>(bytes, 0) == local_signature;
}

std::vector<ZipEntry> read_zip_directory(std::span<const uint8_t> archive, const std::string& file) {
  return ZipReader(archive, file).read();
}

std::vector<std::string> zip_names(const InputFile& archive, const std::string& file) {
  const uint64_t tail_bytes = std::min<uint64_t>(archive.size(), longest_tail);
  const FileBytes tail = archive.read(archive.size() - tail_bytes, tail_bytes);
  const ZipReader reader(tail.bytes(), file, archive.size() - tail_bytes);
  const Directory directory = reader.find_directory();
  if (directory.size > largest_directory)
    fail<FormatError>("{}: a zip archive with a directory of {} bytes; up to {} are read", file, directory.size,
                      largest_directory);
  const FileBytes bytes = archive.read(directory.begin, directory.size);
  const std::vector<DirectoryEntry> entries = reader.read_directory(bytes.bytes(), directory.entries);
  reader.check_size(directory, entries, archive.size());
  std::vector<std::string> names;
  for (const DirectoryEntry& entry : entries) names.emplace_back(entry.name);
  return names;
}

uint32_t crc32_of(std::span<const uint8_t> bytes) {
  return static_cast<uint32_t>(crc32_z(0, bytes.data(), bytes.size()));
}

}  // namespace nibblenet
