#include "engine/io/archive.h"

#include <archive.h>
#include <archive_entry.h>
#include <fmt/ranges.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>

#include "engine/core/error.h"
#include "engine/io/posix_file.h"
#include "engine/quant/text.h"

namespace nibblenet {
namespace {

constexpr size_t smallest_piece = size_t{1} << 12;
constexpr size_t largest_piece = size_t{1} << 22;

// All that is read from an archive may take `most_growth` times its bytes, plus the allowance.
// Pictures and CIFAR-10 hardly compress; zeros shrink to a thousandth.
constexpr size_t most_growth = 50;
constexpr size_t growth_allowance = size_t{64} << 20;

/// The bytes of a tar, decompressed if they are gzip's. zlib checks each member's CRC-32 and
/// length; libarchive's own filter does not.
class TarSource {
 public:
  explicit TarSource(const std::filesystem::path& path) : file_(open_stdio(path, "rb")), path_(path) {
    constexpr int gzip_only = 16;  // added to the bits of the window
    if (inflateInit2(&stream_, MAX_WBITS + gzip_only) != Z_OK)
      fail<IoError>("cannot open {}: out of memory", path.string());
    refill();
    gzip_ = stream_.avail_in >= 2 && input_[0] == 0x1F && input_[1] == 0x8B;
  }
  ~TarSource() { inflateEnd(&stream_); }
  TarSource(const TarSource&) = delete;
  TarSource& operator=(const TarSource&) = delete;

  /// The next bytes, valid until the next call; none at the end. Throws IoError, or FormatError
  /// where a gzip stream is damaged or cut off.
  std::span<const uint8_t> next() {
    if (!gzip_) {
      const std::span<const uint8_t> all(stream_.next_in, stream_.avail_in);
      stream_.avail_in = 0;
      if (!all.empty()) return all;
      refill();
      return {input_.data(), std::exchange(stream_.avail_in, 0)};
    }
    for (;;) {
      if (stream_.avail_in == 0) refill();
      if (stream_.avail_in == 0 && in_member_) fail<FormatError>("the gzip stream is cut off");
      if (stream_.avail_in == 0) return {};
      if (!in_member_ && members_ > 0 && *stream_.next_in == 0) {  // padding, as on tapes
        padded_ = true;
        ++stream_.next_in;
        --stream_.avail_in;
        continue;
      }
      if (!in_member_) {
        if (padded_) fail<FormatError>("something follows the padding of the gzip stream");
        inflateReset(&stream_);
        in_member_ = true;
        ++members_;
      }
      stream_.next_out = output_.data();
      stream_.avail_out = static_cast<uInt>(output_.size());
      const int status = inflate(&stream_, Z_NO_FLUSH);
      if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR)
        fail<FormatError>("gzip: {}", stream_.msg != nullptr ? stream_.msg : "damaged data");
      in_member_ = status != Z_STREAM_END;
      if (const size_t got = output_.size() - stream_.avail_out; got > 0) return {output_.data(), got};
    }
  }

  /// The callback of libarchive, which no exception may pass through.
  static la_ssize_t read(archive* reader, void* self, const void** buffer) {
    try {
      const std::span<const uint8_t> bytes = static_cast<TarSource*>(self)->next();
      *buffer = bytes.data();
      return static_cast<la_ssize_t>(bytes.size());
    } catch (const std::exception& error) {
      archive_set_error(reader, EIO, "%s", error.what());
      return ARCHIVE_FATAL;
    }
  }

 private:
  void refill() {
    stream_.next_in = input_.data();
    stream_.avail_in = static_cast<uInt>(std::fread(input_.data(), 1, input_.size(), file_.get()));
    if (stream_.avail_in < input_.size() && std::ferror(file_.get()) != 0)
      fail<IoError>("cannot read {}: {}", path_.string(), std::generic_category().message(errno));
  }

  StdioFile file_;
  std::filesystem::path path_;
  std::vector<uint8_t> input_ = std::vector<uint8_t>(size_t{1} << 17), output_ = input_;
  z_stream stream_ = {};
  bool gzip_ = false;
  bool in_member_ = false;
  bool padded_ = false;
  int64_t members_ = 0;
};

/// Splits a path into its parts, "." left out. Nothing when no part is left, or one is hidden; ".."
/// counts as hidden.
std::optional<std::vector<std::string>> visible_parts(std::string_view path) {
  std::vector<std::string> parts;
  for (const std::string_view part : split(path, '/')) {
    if (part.empty() || part == ".") continue;
    if (part.front() == '.') return std::nullopt;
    parts.emplace_back(part);
  }
  if (parts.empty()) return std::nullopt;
  return parts;
}

class DiskEntry final : public FileEntry {
 public:
  DiskEntry(std::vector<std::string> parts, std::filesystem::path file)
      : FileEntry(std::move(parts)), file_(std::move(file)) {}
  std::string location() const override { return file_.string(); }
  std::filesystem::path on_disk() const override { return file_; }
  std::vector<uint8_t> read(size_t most) override { return read_file(file_, most); }

 private:
  std::filesystem::path file_;
};

[[noreturn]] void refuse_growth(const std::string& location) {
  fail<FormatError>("{}: what is read from the archive takes up more than {} times its size; unpack it first", location,
                    most_growth);
}

class ArchivedEntry final : public FileEntry {
 public:
  /// `room`: the bytes that may still be read from the archive.
  ArchivedEntry(std::vector<std::string> parts, const std::filesystem::path& path, archive* source,
                archive_entry* header, size_t& room)
      : FileEntry(std::move(parts)), path_(path), source_(source), header_(header), room_(room) {}

  std::string location() const override { return fmt::format("{}: {}", path_.string(), name()); }

  std::vector<uint8_t> read(size_t most) override {
    if (archive_entry_filetype(header_) != AE_IFREG || archive_entry_hardlink(header_) != nullptr)
      fail<FormatError>(
          "{} is a link, which cannot be followed inside an archive; repack it with the links resolved "
          "(tar --dereference --hard-dereference)",
          location());
    const int64_t declared = archive_entry_size(header_);
    if (archive_entry_size_is_set(header_) != 0 && (declared < 0 || static_cast<uint64_t>(declared) > most))
      fail<FormatError>("{} says it has {} bytes; at most {} are allowed here", location(), declared, most);
    std::vector<uint8_t> content;
    for (;;) {
      const void* data = nullptr;
      size_t size = 0;
      la_int64_t offset = 0;
      const int status = archive_read_data_block(source_, &data, &size, &offset);
      if (status != ARCHIVE_OK && status != ARCHIVE_EOF && status != ARCHIVE_WARN) {
        const char* reason = archive_error_string(source_);
        fail<FormatError>("{} cannot be read, the archive is truncated or corrupt: {}", location(),
                          reason != nullptr ? reason : "no reason given");
      }
      // Holes take nothing in an archive, but memory here: a kilobyte of archive could ask for all
      // of it.
      const bool hole = static_cast<uint64_t>(offset) != content.size();
      if (hole && (size > 0 || status == ARCHIVE_EOF))
        fail<FormatError>("{} is stored as a sparse file, which is not supported; repack it without --sparse",
                          location());
      if (status == ARCHIVE_EOF) break;
      if (size > most - content.size())
        fail<FormatError>("{} has more than the {} bytes allowed here", location(), most);
      if (size > room_) {
        room_ = 0;
        refuse_growth(location());
      }
      room_ -= size;
      const auto* bytes = static_cast<const uint8_t*>(data);
      content.insert(content.end(), bytes, bytes + size);
    }
    content.shrink_to_fit();
    return content;
  }

 private:
  const std::filesystem::path& path_;
  archive* source_;
  archive_entry* header_;
  size_t& room_;
};

/// Whether an item is a link to a folder that contains it.
bool leads_back(const std::filesystem::directory_entry& item) {
  std::error_code error;
  if (!item.is_symlink(error) || !item.is_directory(error)) return false;
  const auto target = std::filesystem::canonical(item.path(), error);
  const auto place = std::filesystem::canonical(item.path().parent_path(), error);
  return error || std::mismatch(target.begin(), target.end(), place.begin(), place.end()).first == target.end();
}

void walk_folder(const std::filesystem::path& folder, const std::function<void(FileEntry&)>& visit) {
  namespace fs = std::filesystem;
  try {
    for (fs::recursive_directory_iterator item(folder, fs::directory_options::follow_directory_symlink), end;
         item != end; ++item) {
      std::error_code error;
      const bool link = item->is_symlink(error);
      // The limits also end circles of links that go through several folders.
      if (item.depth() + 1 >= (link ? max_link_depth : max_walk_depth) ||
          item->path().filename().string().front() == '.' || leads_back(*item))
        item.disable_recursion_pending();
      const bool dangling = link && !item->exists(error);
      if (!item->is_regular_file(error) && !dangling) continue;
      auto parts = visible_parts(item->path().lexically_relative(folder).generic_string());
      if (!parts) continue;
      DiskEntry entry(std::move(*parts), item->path());
      visit(entry);
    }
  } catch (const fs::filesystem_error& error) {
    fail<IoError>("cannot read the folder {}: {}", folder.string(), error.code().message());
  }
}

void walk_archive(const std::filesystem::path& path, const std::function<void(FileEntry&)>& visit) {
  // Opening the file ourselves tells a missing permission from a wrong format.
  TarSource bytes(path);
  const std::unique_ptr<archive, int (*)(archive*)> source(archive_read_new(), archive_read_free);
  if (source == nullptr) fail<IoError>("cannot open {}: out of memory", path.string());
  const auto reason = [&source] {
    const char* text = archive_error_string(source.get());
    return text != nullptr ? text : "no reason given";
  };
  // Only the promised format: every further one would be more code that reads untrusted bytes.
  archive_read_support_format_tar(source.get());
  if (archive_read_open(source.get(), &bytes, nullptr, TarSource::read, nullptr) != ARCHIVE_OK)
    fail<FormatError>("{} is neither a folder nor a .tar or .tar.gz archive: {}", path.string(), reason());

  size_t room = growth_allowance + most_growth * static_cast<size_t>(std::filesystem::file_size(path));
  for (;;) {
    archive_entry* header = nullptr;
    const int status = archive_read_next_header(source.get(), &header);
    if (status == ARCHIVE_EOF) break;
    // A warning means a name outside the locale or an odd attribute: the file itself is fine.
    // After "retry", libarchive would skip a damaged header together with its file.
    if (status != ARCHIVE_OK && status != ARCHIVE_WARN)
      fail<FormatError>("{} is truncated or corrupt, or no .tar or .tar.gz archive: {}", path.string(), reason());
    const auto type = archive_entry_filetype(header);
    if (type != AE_IFREG && type != AE_IFLNK && archive_entry_hardlink(header) == nullptr) continue;
    // Names that the locale cannot express are still there in UTF-8.
    const char* name = archive_entry_pathname(header);
    if (name == nullptr) name = archive_entry_pathname_utf8(header);
    if (name == nullptr) fail<FormatError>("{} is corrupt: a file has no readable name", path.string());
    auto parts = visible_parts(name);
    if (!parts) continue;
    ArchivedEntry entry(std::move(*parts), path, source.get(), header, room);
    visit(entry);
    if (room == 0) refuse_growth(path.string());  // also where the visitor goes on without this file
  }
  try {
    while (!bytes.next().empty()) {  // to the last checksum, which lies behind the end of the tar
    }
  } catch (const FormatError& error) {
    fail<FormatError>("{} is truncated or corrupt: {}", path.string(), error.what());
  }
}

}  // namespace

std::string FileEntry::name() const { return fmt::format("{}", fmt::join(parts_, "/")); }

void walk_files(const std::filesystem::path& path, const std::function<void(FileEntry&)>& visit) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status))
    fail<IoError>("cannot open {}: {}", path.string(), error ? error.message() : "no such file or folder");
  if (std::filesystem::is_directory(status)) return walk_folder(path, visit);
  if (!std::filesystem::is_regular_file(status))
    fail<IoError>("cannot open {}: neither a file nor a folder", path.string());
  walk_archive(path, visit);
}

/// Reads to the end in growing pieces, so that memory follows the bytes that are there.
std::vector<uint8_t> read_file(const std::filesystem::path& path, size_t most) {
  const StdioFile file = open_stdio(path, "rb");
  std::vector<uint8_t> content;
  for (size_t used = 0;;) {
    const size_t piece = std::clamp(used, smallest_piece, largest_piece);
    content.resize(used + std::min(piece, most - used + 1));  // one byte beyond `most` shows that there is more
    const size_t got = std::fread(content.data() + used, 1, content.size() - used, file.get());
    used += got;
    if (used < content.size() && std::ferror(file.get()) != 0)
      fail<IoError>("cannot read {}: {}", path.string(), std::generic_category().message(errno));
    if (used > most) fail<FormatError>("{} has more than the {} bytes allowed here", path.string(), most);
    if (got == 0) {
      content.resize(used);
      content.shrink_to_fit();
      return content;
    }
  }
}

}  // namespace nibblenet
