#include "engine/io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "engine/io/element.h"
#include "engine/io/safetensors_header.h"

namespace nibblenet {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the format is little-endian and its bytes are used in place");

/// Refuses text files, which a server or Git may put in a model's place.
void refuse_text(const InputFile& file, const std::string& name) {
  const FileBytes begin = file.read(0, std::min<uint64_t>(file.size(), 512));
  std::string_view text(reinterpret_cast<const char*>(begin.bytes().data()), begin.bytes().size());
  text.remove_prefix(std::min(text.find_first_not_of("\xEF\xBB\xBF \t\r\n"), text.size()));
  if (text.starts_with("version https://git-lfs"))
    fail<FormatError>("{}: a Git LFS pointer, a text in the model's place; fetch the model with git lfs pull", name);
  if (text.starts_with('<') && (text.find("html") != text.npos || text.find("HTML") != text.npos))
    fail<FormatError>("{}: an HTML page, not a model; download the file itself, not the page that shows it", name);
  const auto is_printable = [](char c) { return c == '\t' || c == '\n' || c == '\r' || (c >= ' ' && c != 0x7F); };
  if (!text.empty() && std::ranges::all_of(text, is_printable))
    fail<FormatError>("{}: a text, not a model: it begins with {}", name, in_quotes(text.substr(0, 40)));
}

/// Refuses files of other formats by their first bytes, and says what they are. For files whose
/// first bytes are no length of a header: 1F 8B 00 00 … would be one.
void refuse_other_formats(const InputFile& file, const std::string& name) {
  struct Kind {
    std::string_view begin;
    const char* what;
  };
  using namespace std::string_view_literals;
  constexpr std::array kinds = {Kind{"GGUF"sv, "a GGUF model"},
                                Kind{"\x89HDF\r\n"sv, "an HDF5 file (Keras)"},
                                Kind{"\x93NUMPY"sv, "a NumPy array"},
                                Kind{"\x1F\x8B"sv, "a gzip archive"},
                                Kind{"BZh"sv, "a bzip2 archive"},
                                Kind{"\xFD\x37zXZ"sv, "an xz archive"},
                                Kind{"\x28\xB5\x2F\xFD"sv, "a zstd archive"},
                                Kind{"\177ELF"sv, "a program"},
                                Kind{"\xFF\xD8\xFF"sv, "a JPEG picture"},
                                Kind{"\x89PNG"sv, "a PNG picture"}};
  const FileBytes content = file.read(0, std::min<uint64_t>(file.size(), 8));
  const std::string_view begin(reinterpret_cast<const char*>(content.bytes().data()), content.bytes().size());
  for (const Kind& kind : kinds)
    if (begin.starts_with(kind.begin))
      fail<FormatError>("{}: {}, not a model that can be read here; name a .safetensors or .pth file", name, kind.what);
  // ONNX: field 1, a version; field 2, the length of the producer's name.
  if (begin[0] == 0x08 && begin[1] > 0 && begin[1] < 32 && begin[2] == 0x12 && begin[3] != 0)
    fail<FormatError>("{}: an ONNX model, which cannot be read here; name the .safetensors or .pth file it came from",
                      name);
}

/// Reads the length and the JSON in front of the data.
FileBytes read_header(const InputFile& file, const std::string& name) {
  refuse_text(file, name);
  if (file.size() < safetensors_prefix)
    fail<FormatError>("{}: {} bytes are too few for a safetensors file; fetch or write the file again", name,
                      file.size());
  uint64_t length = 0;
  const FileBytes prefix = file.read(0, safetensors_prefix);
  std::memcpy(&length, prefix.bytes().data(), sizeof length);
  if (length > max_safetensors_header || length > file.size() - safetensors_prefix) refuse_other_formats(file, name);
  if (length > max_safetensors_header)
    fail<FormatError>("{}: no safetensors file, or a broken one: it claims a header of {} bytes (the limit is {})",
                      name, length, max_safetensors_header);
  if (length > file.size() - safetensors_prefix)
    fail<FormatError>(
        "{}: the header should be {} bytes but only {} follow; the file is cut off, fetch or write it again", name,
        length, file.size() - safetensors_prefix);
  return file.read(0, safetensors_prefix + length);
}

SafetensorsHeader parse(std::span<const uint8_t> bytes, const InputFile& file, const std::string& name) {
  check_header(bytes, name);
  const std::string_view json(reinterpret_cast<const char*>(bytes.data()) + safetensors_prefix,
                              bytes.size() - safetensors_prefix);
  SafetensorsHeader header = parse_safetensors_header(json, file.size() - bytes.size(), name);
  check_keys(header.metadata, json.starts_with(checked_start), name);
  return header;
}

/// Whether every tensor needs a checksum. Files of ours have all of them or none.
bool demands_checksums(const std::map<std::string, std::string>& metadata) {
  const auto first = metadata.lower_bound(std::string(checksum_prefix));
  return metadata.contains(std::string(header_checksum_key)) ||
         (value_of(metadata, format_key).starts_with(format_prefix) && first != metadata.end() &&
          first->first.starts_with(checksum_prefix));
}

}  // namespace

std::map<std::string, std::string> safetensors_metadata(const std::filesystem::path& path) {
  const InputFile file(path);
  return parse(read_header(file, path.string()).bytes(), file, path.string()).metadata;
}

/// Reads the data once the header shows that the file is complete.
SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path) {
  const InputFile file(path);
  const FileBytes head = read_header(file, path.string());
  SafetensorsHeader header = parse(head.bytes(), file, path.string());
  header_bytes_ = static_cast<int64_t>(head.bytes().size());
  data_ = file.read(head.bytes().size(), file.size() - head.bytes().size());

  metadata_ = std::move(header.metadata);
  tensors_.reserve(header.tensors.size());
  for (SafetensorsHeader::Tensor& tensor : header.tensors) {
    index_.emplace(tensor.name, tensors_.size());
    tensors_.push_back({std::move(tensor.name), tensor.dtype, std::move(tensor.sizes),
                        data_.bytes().subspan(tensor.begin, tensor.end - tensor.begin)});
  }
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
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
  if (demands_checksums(metadata()))
    for (const TensorEntry& entry : tensors())
      if (!metadata().contains(std::string(checksum_prefix) + entry.name))
        fail<FormatError>("{}: {} has no checksum; the file is damaged, fetch or write it again", path().string(),
                          in_quotes(entry.name));
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

Tensor<float> read_float(const SafetensorsFile& file, const TensorEntry& entry, MemoryResource& memory,
                         MemoryCategory category) {
  if (entry.sizes.size() > Shape::max_rank)
    fail<FormatError>("{}: {} has {} dimensions, at most {} are supported", file.path().string(), in_quotes(entry.name),
                      entry.sizes.size(), Shape::max_rank);
  Tensor<float> result(memory, Shape(entry.sizes), category);
  const std::span<float> out = result.view().span();
  if (out.empty()) return result;
  if (!floats_from(entry.dtype, entry.bytes, out))
    fail<FormatError>("{}: {} holds {}, expected F32, F16, BF16 or F64", file.path().string(), in_quotes(entry.name),
                      to_string(entry.dtype));
  return result;
}

}  // namespace nibblenet
