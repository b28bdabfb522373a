#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/posix_file.h"
#include "engine/io/safetensors_header.h"

namespace nibblenet {
namespace {

/// A file under a temporary name that becomes `target` on commit() and vanishes otherwise.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& target) : target_(target) {
    // The name is new even with several threads, processes, or machines that share the folder: O_EXCL decides.
    static std::atomic<unsigned> counter{0};
    do {
      temporary_ = folder() / fmt::format(".nibblenet-{}-{}.tmp", getpid(), counter++);
      file_ = FileDescriptor(open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    } while (!file_.is_open() && errno == EEXIST);
    if (!file_.is_open()) fail_io("write", target_);
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() {
    if (!committed_) unlink(temporary_.c_str());
  }

  void write(std::span<const uint8_t> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(file_.get(), bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail_io("write", target_);
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
  }

  void commit() {
    if (fsync(file_.get()) != 0 || !file_.close()) fail_io("write", target_);
    if (rename(temporary_.c_str(), target_.c_str()) != 0) fail_io("replace", target_);
    committed_ = true;
    // The new name is on the disk only once its folder is. Some file systems cannot flush a folder: no reason to fail.
    const FileDescriptor directory(open(folder().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory.is_open() && fsync(directory.get()) != 0 && errno != EINVAL && errno != ENOTSUP)
      fail_io("flush the folder of", target_);
  }

 private:
  std::filesystem::path folder() const { return target_.has_parent_path() ? target_.parent_path() : "."; }

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  FileDescriptor file_;
  bool committed_ = false;
};

/// Where the file really goes: links are followed, and only a regular file or nothing may be there. Renaming over
/// /dev/null would succeed for root, and cost the machine its /dev/null.
std::filesystem::path resolve(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(status)) fail_io("write", path, EISDIR);
  if (!std::filesystem::exists(status)) return path;
  if (!std::filesystem::is_regular_file(status))
    fail<IoError>("cannot write {}: it is no ordinary file; choose another name", path.string());
  return std::filesystem::canonical(path);
}

std::string json_text(const std::string& text, const std::filesystem::path& path) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    fail<FormatError>("cannot write {}: {} is no UTF-8 text", path.string(), in_quotes(text));
  }
}

void check(const std::vector<TensorToWrite>& tensors, const std::filesystem::path& path) {
  std::set<std::string_view> names;
  for (const TensorToWrite& tensor : tensors) {
    uint64_t bytes = 0;
    if (!tensor_bytes(tensor.dtype, tensor.sizes, bytes) || bytes != tensor.bytes.size())
      fail<ShapeError>("cannot write {}: {} of {} [{}] has {} bytes", path.string(), in_quotes(tensor.name),
                       to_string(tensor.dtype), fmt::join(tensor.sizes, ", "), tensor.bytes.size());
    if (tensor.name == "__metadata__" || !names.insert(tensor.name).second)
      fail<FormatError>("cannot write {}: a tensor cannot have the name {}, which is {}", path.string(),
                        in_quotes(tensor.name), tensor.name == "__metadata__" ? "reserved" : "taken by another");
  }
}

/// The length prefix and the JSON, padded with spaces so that the data behind it starts on a multiple of 8 bytes.
std::string header_text(const std::vector<const TensorToWrite*>& tensors, std::map<std::string, std::string> metadata,
                        const std::filesystem::path& path) {
  // A checksum handed in comes from another file: it may name a tensor that is not here or has other bytes.
  std::erase_if(metadata, [](const auto& item) { return item.first.starts_with(checksum_prefix); });
  for (const TensorToWrite* tensor : tensors)
    metadata[std::string(checksum_prefix) + tensor->name] = checksum_of(tensor->bytes);

  std::string text(safetensors_prefix, '\0');
  text += R"({"__metadata__":{)";
  for (const char* separator = ""; const auto& [key, value] : metadata) {
    text += fmt::format("{}{}:{}", separator, json_text(key, path), json_text(value, path));
    separator = ",";
  }
  text += '}';
  uint64_t offset = 0;
  for (const TensorToWrite* tensor : tensors) {
    text += fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", json_text(tensor->name, path),
                        to_string(tensor->dtype), fmt::join(tensor->sizes, ","), offset, offset + tensor->bytes.size());
    offset += tensor->bytes.size();
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size() - safetensors_prefix;
  if (length > max_safetensors_header)
    fail<FormatError>("cannot write {}: names and metadata take {} bytes, the format's limit is {}", path.string(),
                      length, max_safetensors_header);
  std::memcpy(text.data(), &length, sizeof length);
  return text;
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  check(tensors, path);
  // Wide elements first: every tensor then starts on a multiple of its own element, for readers that use it in place.
  std::vector<const TensorToWrite*> ordered(tensors.size());
  std::ranges::transform(tensors, ordered.begin(), [](const TensorToWrite& tensor) { return &tensor; });
  std::ranges::stable_sort(ordered, std::ranges::greater{},
                           [](const TensorToWrite* tensor) { return size_of(tensor->dtype); });
  const std::string header = header_text(ordered, metadata, path);

  AtomicFile file(resolve(path));
  file.write(bytes_of(std::span<const char>(header)));
  for (const TensorToWrite* tensor : ordered) file.write(tensor->bytes);
  file.commit();
}

}  // namespace nibblenet
