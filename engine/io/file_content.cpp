#include "engine/io/file_content.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

uint64_t machine_memory() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

InputFile::InputFile(const std::filesystem::path& path) : path_(path) {
  // Without O_NONBLOCK a pipe of that name would make the open wait for a writer.
  file_ = FileDescriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file_.is_open()) fail_io("open", path);
  struct stat status = {};
  if (fstat(file_.get(), &status) != 0) fail_io("examine", path);
  if (S_ISDIR(status.st_mode)) fail_io("open", path, EISDIR);
  if (!S_ISREG(status.st_mode))
    fail<IoError>("cannot open {}: it is no ordinary file; name a .safetensors or .pth file", path.string());
  size_ = static_cast<uint64_t>(status.st_size);
}

FileBytes InputFile::read(uint64_t begin, uint64_t count) const {
  const auto no_memory = [&] {
    fail<IoError>("cannot read {}: there is no memory for {} bytes of it", path_.string(), count);
  };
  if (count > machine_memory()) no_memory();
  std::unique_ptr<uint8_t[]> data(new (std::nothrow) uint8_t[static_cast<size_t>(count)]);
  if (data == nullptr) no_memory();
  constexpr uint64_t most_at_once = uint64_t{1} << 30;
  for (uint64_t done = 0; done < count;) {
    const ssize_t got = pread(file_.get(), data.get() + done, static_cast<size_t>(std::min(count - done, most_at_once)),
                              static_cast<off_t>(begin + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_io("read", path_);
    if (got == 0)
      fail<IoError>("cannot read {}: it was cut short to {} of {} bytes while it was read; write or fetch it again",
                    path_.string(), begin + done, size_);
    done += static_cast<uint64_t>(got);
  }
  return {std::move(data), static_cast<size_t>(count)};
}

}  // namespace nibblenet
