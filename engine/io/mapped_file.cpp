#include "engine/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "engine/core/error.h"
#include "engine/io/posix_file.h"

namespace nibblenet {

MappedFile::MappedFile(const std::filesystem::path& path) {
  // Without O_NONBLOCK a pipe of that name would make the open wait for a writer.
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.is_open()) fail_io("open", path);
  struct stat status = {};
  if (fstat(file.get(), &status) != 0) fail_io("examine", path);
  if (S_ISDIR(status.st_mode)) fail_io("open", path, EISDIR);
  if (!S_ISREG(status.st_mode))
    fail<IoError>("cannot open {}: it is no ordinary file; name a .safetensors or .pth file", path.string());
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;  // mmap refuses a length of 0
  data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    fail_io("map", path);
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace nibblenet
