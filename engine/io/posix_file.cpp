#include "engine/io/posix_file.h"

#include <unistd.h>

#include <system_error>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

std::string_view hint_for(int error) {
  switch (error) {
    case ENOENT:
      return "check the path, and create the folder if it is missing";
    case ENOTDIR:
      return "a part of the path is a file, not a folder";
    case EISDIR:
      return "it is a folder, name a file in it";
    case EACCES:
    case EPERM:
    case EROFS:
      return "choose a place that you have permission for";
    case ENOSPC:
    case EDQUOT:
      return "free some space or choose another disk";
    case EFBIG:
      return "raise the file size limit (ulimit -f) or choose another disk";
    case EMFILE:
    case ENFILE:
      return "raise the limit of open files (ulimit -n)";
    default:
      return "try another place";
  }
}

}  // namespace

bool FileDescriptor::close() {
  const int descriptor = std::exchange(descriptor_, -1);
  return descriptor < 0 || ::close(descriptor) == 0;
}

StdioFile open_stdio(const std::filesystem::path& path, const char* mode) {
  StdioFile file(std::fopen(path.c_str(), mode), std::fclose);
  if (file == nullptr) fail<IoError>("cannot open {}: {}", path.string(), std::generic_category().message(errno));
  return file;
}

void fail_io(std::string_view action, const std::filesystem::path& path, int error) {
  fail<IoError>("cannot {} {}: {}; {}", action, path.string(), std::generic_category().message(error), hint_for(error));
}

}  // namespace nibblenet
