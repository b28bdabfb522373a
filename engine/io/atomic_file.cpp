#include "engine/io/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <functional>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : "."; }

/// The file to replace, with links resolved; nothing when `path` is a pipe or a device, which is
/// written directly. Renaming over /dev/null would succeed for root, and destroy it.
std::optional<fs::path> resolve(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) fail_io("write", path, EISDIR);
  if (!fs::exists(status)) return path;
  const std::string text = path.string();
  if (fs::is_fifo(status) || fs::is_character_file(status) || text.starts_with("/dev/fd/") || text == "/dev/stdout")
    return std::nullopt;
  if (!fs::is_regular_file(status)) fail<IoError>("cannot write {}: it is no ordinary file; choose another name", text);
  return fs::canonical(path);
}

bool is_linked(const FileDescriptor& file) {
  struct stat status = {};
  return fstat(file.get(), &status) == 0 && status.st_nlink > 0;
}

/// Opens a temporary file and locks it while it is open, so that remove_left_over() can tell it
/// from those of killed processes. On failure returns a file that is not open and sets errno:
/// EWOULDBLOCK when another process has the lock.
FileDescriptor open_locked(const fs::path& path, int flags) {
  for (;;) {
    FileDescriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666));
    if (!file.is_open()) return file;
    if (flock(file.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      file.close();
      errno = EWOULDBLOCK;
      return {};
    }                                  // a file system without locks: left-over files stay there
    if (is_linked(file)) return file;  // else another process removed it before it was locked
  }
}

/// Removes temporary files that no process has open.
void remove_left_over(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(".nibblenet-") || !name.ends_with(".tmp")) continue;
    const FileDescriptor file(open(entry.path().c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (file.is_open() && flock(file.get(), LOCK_EX | LOCK_NB) == 0) unlink(entry.path().c_str());
  }
}

/// Opens a pipe or device for writing. A pipe needs a reader already.
FileDescriptor open_directly(const fs::path& path) {
  FileDescriptor file(open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NONBLOCK));
  if (file.is_open()) fcntl(file.get(), F_SETFL, O_APPEND);  // wait for slow readers
  return file;
}

/// The path of the locked file of a claim, the same for all names of a file.
fs::path claim_path(const fs::path& target) {
  const fs::path file = resolve(target).value_or(target);
  return folder_of(file) / fmt::format(".nibblenet-{:016x}.tmp", std::hash<std::string>()(file.filename().string()));
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& target) : target_(target) {
  const std::optional<fs::path> resolved = resolve(target);
  if (!resolved) {
    file_ = open_directly(target);
  } else {
    target_ = *resolved;
    const fs::path folder = folder_of(target_);
    remove_left_over(folder);
    // The name is new even with several threads, processes, or machines that share the folder:
    // O_EXCL decides.
    static std::atomic<unsigned> counter{0};
    do {
      temporary_ = folder / fmt::format(".nibblenet-{}-{}.tmp", getpid(), counter++);
      file_ = open_locked(temporary_, O_EXCL);
    } while (!file_.is_open() && (errno == EEXIST || errno == EWOULDBLOCK));
  }
  if (!file_.is_open()) fail_io("write", target_);
}

AtomicFile::~AtomicFile() {
  if (file_.is_open() && !temporary_.empty()) unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file_.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_io("write", target_);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void AtomicFile::commit() {
  if (temporary_.empty()) {
    if (!file_.close()) fail_io("write", target_);
    return;
  }
  if (fsync(file_.get()) != 0) fail_io("write", target_);
  if (rename(temporary_.c_str(), target_.c_str()) != 0) fail_io("replace", target_);
  temporary_.clear();
  if (!file_.close()) fail_io("write", target_);  // locked until it has its name
  // The new name is on the disk only once its folder is flushed. A file system that cannot flush a
  // folder is no error.
  const FileDescriptor directory(open(folder_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.is_open() && fsync(directory.get()) != 0 && errno != EINVAL && errno != ENOTSUP)
    fail_io("flush the folder of", target_);
}

std::optional<FileClaim> FileClaim::try_claim(const fs::path& target) {
  fs::path path = claim_path(target);
  FileDescriptor file = open_locked(path, 0);
  if (file.is_open()) return FileClaim(std::move(path), std::move(file));
  if (errno != EWOULDBLOCK) fail_io("write", target);
  return std::nullopt;
}

FileClaim::~FileClaim() {
  if (file_.is_open()) unlink(path_.c_str());
}

}  // namespace nibblenet
