#include "engine/io/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <bit>
#include <cstring>

#include "engine/core/half.h"
#include "engine/io/posix_file.h"
#include "engine/io/safetensors_header.h"

namespace nibblenet {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the format is little-endian and its bytes are used in place");

/// A whole file as read-only memory. Should another process shorten the file afterwards, touching the lost pages
/// raises SIGBUS: the price of not copying. Files of this project are replaced by rename, which leaves mappings whole.
class Mapping {
 public:
  Mapping() = default;
  explicit Mapping(const std::filesystem::path& path) {
    // Without O_NONBLOCK a pipe of that name would make the open wait for a writer.
    const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file.is_open()) fail_io("open", path);
    struct stat status = {};
    if (fstat(file.get(), &status) != 0) fail_io("examine", path);
    if (S_ISDIR(status.st_mode)) fail_io("open", path, EISDIR);
    if (!S_ISREG(status.st_mode))
      fail<IoError>("cannot open {}: it is no ordinary file; name a .safetensors file", path.string());
    size_ = static_cast<size_t>(status.st_size);
    if (size_ == 0) return;  // mmap refuses a length of 0
    data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      fail_io("map", path);
    }
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_ != nullptr) munmap(data_, size_);
  }

  std::span<const uint8_t> bytes() const { return {static_cast<const uint8_t*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

uint64_t header_length(std::span<const uint8_t> file, const std::string& name) {
  if (file.size() < safetensors_prefix)
    fail<FormatError>("{}: {} bytes are too few for a safetensors file; fetch or write the file again", name,
                      file.size());
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  if (length > max_safetensors_header)
    fail<FormatError>("{}: no safetensors file, or a broken one: it claims a header of {} bytes (the limit is {})",
                      name, length, max_safetensors_header);
  if (length > file.size() - safetensors_prefix)
    fail<FormatError>(
        "{}: the header should be {} bytes but only {} follow; the file is cut off, fetch or write it again", name,
        length, file.size() - safetensors_prefix);
  return length;
}

/// Element `index` of unaligned bytes: tensors of foreign files may start anywhere.
template <class T>
T element(std::span<const uint8_t> bytes, size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

template <class T, class Convert>
void convert(std::span<const uint8_t> bytes, std::span<float> out, Convert&& to_float) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = to_float(element<T>(bytes, i));
}

}  // namespace

struct SafetensorsFile::Impl {
  explicit Impl(const std::filesystem::path& file) : path(file), mapping(file) {
    const std::span<const uint8_t> bytes = mapping.bytes();
    const std::string file_name = path.string();
    const uint64_t json_bytes = header_length(bytes, file_name);
    const std::span<const uint8_t> data = bytes.subspan(safetensors_prefix + json_bytes);
    const std::string_view json(reinterpret_cast<const char*>(bytes.data()) + safetensors_prefix, json_bytes);
    SafetensorsHeader header = parse_safetensors_header(json, data.size(), file_name);

    header_bytes = static_cast<int64_t>(safetensors_prefix + json_bytes);
    metadata = std::move(header.metadata);
    tensors.reserve(header.tensors.size());
    for (SafetensorsHeader::Tensor& tensor : header.tensors) {
      index.emplace(tensor.name, tensors.size());
      tensors.push_back({std::move(tensor.name), tensor.dtype, std::move(tensor.sizes),
                         data.subspan(tensor.begin, tensor.end - tensor.begin)});
    }
  }

  std::filesystem::path path;
  Mapping mapping;
  int64_t header_bytes = 0;
  std::map<std::string, std::string> metadata;
  std::vector<TensorEntry> tensors;
  std::map<std::string, size_t, std::less<>> index;  ///< place of each name in `tensors`
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : impl_(std::make_unique<Impl>(path)) {}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const std::filesystem::path& SafetensorsFile::path() const { return impl_->path; }
int64_t SafetensorsFile::file_bytes() const { return static_cast<int64_t>(impl_->mapping.bytes().size()); }
int64_t SafetensorsFile::header_bytes() const { return impl_->header_bytes; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return impl_->metadata; }
const std::vector<TensorEntry>& SafetensorsFile::tensors() const { return impl_->tensors; }

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = impl_->index.find(name);
  return found == impl_->index.end() ? nullptr : &impl_->tensors[found->second];
}

const TensorEntry& SafetensorsFile::at(std::string_view name) const {
  const TensorEntry* entry = find(name);
  if (entry == nullptr)
    fail<FormatError>("{}: no tensor {} among its {}; is this the right file?", path().string(), in_quotes(name),
                      tensors().size());
  return *entry;
}

int SafetensorsFile::verify() const {
  int checked = 0;
  for (auto i = metadata().lower_bound(std::string(checksum_prefix));
       i != metadata().end() && i->first.starts_with(checksum_prefix); ++i) {
    const TensorEntry& entry = at(std::string_view(i->first).substr(checksum_prefix.size()));
    if (const std::string actual = checksum_of(entry.bytes); actual != i->second)
      fail<FormatError>("{}: checksum of {}: expected {}, got {}; the file is damaged, fetch or write it again",
                        path().string(), in_quotes(entry.name), in_quotes(i->second), actual);
    ++checked;
  }
  return checked;
}

std::string checksum_of(std::span<const uint8_t> bytes) {
  // XXH3 takes no null pointer, which is what an empty span may hold.
  return fmt::format("{:016x}", XXH3_64bits(bytes.empty() ? "" : static_cast<const void*>(bytes.data()), bytes.size()));
}

Tensor<float> read_float(const SafetensorsFile& file, const TensorEntry& entry, MemoryResource& memory,
                         MemoryCategory category) {
  if (entry.sizes.size() > Shape::max_rank)
    fail<FormatError>("{}: {} has {} dimensions, at most {} are supported", file.path().string(), in_quotes(entry.name),
                      entry.sizes.size(), Shape::max_rank);
  Tensor<float> result(memory, Shape(entry.sizes), category);
  const std::span<float> out = result.view().span();
  if (out.empty()) return result;
  switch (entry.dtype) {
    case DType::f32:
      std::memcpy(out.data(), entry.bytes.data(), out.size_bytes());
      break;
    case DType::f16:
      convert<uint16_t>(entry.bytes, out, f16_to_f32);
      break;
    case DType::bf16:
      convert<uint16_t>(entry.bytes, out, bf16_to_f32);
      break;
    case DType::f64:
      convert<double>(entry.bytes, out, [](double value) { return static_cast<float>(value); });
      break;
    default:
      fail<FormatError>("{}: {} holds {}, expected F32, F16, BF16 or F64", file.path().string(), in_quotes(entry.name),
                        to_string(entry.dtype));
  }
  return result;
}

}  // namespace nibblenet
