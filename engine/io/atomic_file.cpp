#include "engine/io/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

/// Where the file really goes. Renaming over /dev/null would succeed for root, and cost the machine
/// its /dev/null.
std::filesystem::path resolve(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(status)) fail_io("write", path, EISDIR);
  if (!std::filesystem::exists(status)) return path;
  if (!std::filesystem::is_regular_file(status))
    fail<IoError>("cannot write {}: it is no ordinary file; choose another name", path.string());
  return std::filesystem::canonical(path);
}

}  // namespace

AtomicFile::AtomicFile(const std::filesystem::path& target) : target_(resolve(target)) {
  // The name is new even with several threads, processes, or machines that share the folder: O_EXCL
  // decides.
  static std::atomic<unsigned> counter{0};
  do {
    temporary_ = folder() / fmt::format(".nibblenet-{}-{}.tmp", getpid(), counter++);
    file_ = FileDescriptor(open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  } while (!file_.is_open() && errno == EEXIST);
  if (!file_.is_open()) fail_io("write", target_);
}

AtomicFile::~AtomicFile() {
  if (!committed_) unlink(temporary_.c_str());
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
  if (fsync(file_.get()) != 0 || !file_.close()) fail_io("write", target_);
  if (rename(temporary_.c_str(), target_.c_str()) != 0) fail_io("replace", target_);
  committed_ = true;
  // The new name is on the disk only once its folder is. Some file systems cannot flush a folder:
  // no reason to fail.
  const FileDescriptor directory(open(folder().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.is_open() && fsync(directory.get()) != 0 && errno != EINVAL && errno != ENOTSUP)
    fail_io("flush the folder of", target_);
}

}  // namespace nibblenet
