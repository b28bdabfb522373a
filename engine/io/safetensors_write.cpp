#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "engine/io/atomic_file.h"
#include "engine/io/json.h"
#include "engine/io/safetensors_header.h"

namespace nibblenet {
namespace {

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

/// The length prefix and the JSON, padded with spaces so that the data starts at a multiple of 8
/// bytes.
std::string header_text(const std::vector<const TensorToWrite*>& tensors, std::map<std::string, std::string> metadata,
                        const std::filesystem::path& path) {
  // Given checksums are of another file: they may name tensors that are not here, or differ here.
  std::erase_if(metadata, [](const auto& item) {
    return item.first.starts_with(checksum_prefix) || item.first == header_checksum_key;
  });
  if (metadata.try_emplace(std::string(format_key), float_format).second)
    metadata.insert_or_assign(std::string(version_key), std::string(checked_version));
  for (const TensorToWrite* tensor : tensors)
    metadata[std::string(checksum_prefix) + tensor->name] = checksum_of(tensor->bytes);

  std::string text(safetensors_prefix, '\0');
  text += checked_start;
  text.append(checksum_digits, '0').append("\"");
  for (const auto& [key, value] : metadata) text += fmt::format(",{}:{}", json_text(key, path), json_text(value, path));
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
  text.replace(safetensors_prefix + checked_start.size(), checksum_digits,
               checksum_of(bytes_of(std::span<const char>(text))));
  return text;
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  check(tensors, path);
  // Wide elements first: every tensor then starts at a multiple of its element, for readers that
  // use it in place.
  std::vector<const TensorToWrite*> ordered(tensors.size());
  std::ranges::transform(tensors, ordered.begin(), [](const TensorToWrite& tensor) { return &tensor; });
  std::ranges::stable_sort(ordered, std::ranges::greater{},
                           [](const TensorToWrite* tensor) { return size_of(tensor->dtype); });
  const std::string header = header_text(ordered, metadata, path);

  AtomicFile file(path);
  file.write(bytes_of(std::span<const char>(header)));
  for (const TensorToWrite* tensor : ordered) file.write(tensor->bytes);
  file.commit();
}

}  // namespace nibblenet
