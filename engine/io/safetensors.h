#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/io/file_content.h"

namespace nibblenet {

/// Element types of the safetensors format that this project reads or writes.
enum class DType : uint8_t { boolean, u8, i8, u16, i16, f16, bf16, i32, u32, f32, i64, u64, f64 };
size_t size_of(DType dtype);              ///< bytes of an element
std::string_view to_string(DType dtype);  ///< the format's own names: "F32", …

/// One tensor of an open file. `bytes` points into the memory of the SafetensorsFile.
struct TensorEntry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> sizes;  ///< any rank
  std::span<const uint8_t> bytes;
};

/// A safetensors file, read into memory. Opening validates it: header length against file size, the
/// JSON's structure, known types, every size and offset, no overlap, no gap, no duplicate names,
/// and the header's checksum if it has one. The data is read once the header is valid; verify()
/// checks the checksums of the tensors.
class SafetensorsFile {
 public:
  /// Reads the file and checks its header. Throws IoError when it cannot be opened, or became
  /// shorter meanwhile, FormatError for any fault inside, naming the file.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  /// Size of the file in bytes.
  int64_t file_bytes() const { return header_bytes_ + static_cast<int64_t>(data_.bytes().size()); }
  /// The 8-byte length and the JSON: everything that is not tensor data.
  int64_t header_bytes() const { return header_bytes_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::vector<TensorEntry>& tensors() const { return tensors_; }  ///< in file order
  /// The tensor of this name, or null.
  const TensorEntry* find(std::string_view name) const;
  /// Throws FormatError when there is no such tensor.
  const TensorEntry& at(std::string_view name) const;

  /// Recomputes the xxh3 checksum of every tensor that has one (metadata "xxh3:<tensor>"). Returns
  /// how many that are. Throws FormatError naming the first that differs, or that has none in a
  /// file that needs them all: one whose header has a checksum, or one of ours with any checksum.
  int verify() const;

 private:
  std::filesystem::path path_;
  FileBytes data_;
  int64_t header_bytes_ = 0;
  std::map<std::string, std::string> metadata_;
  std::vector<TensorEntry> tensors_;
  std::map<std::string, size_t, std::less<>> index_;  ///< place of each name in `tensors_`
};

/// The metadata of a file whose header is valid, without reading its data. Throws IoError or
/// FormatError.
std::map<std::string, std::string> safetensors_metadata(const std::filesystem::path& path);

/// Reads an F32, F16, BF16 or F64 tensor of up to 4 dimensions as float32. Throws FormatError for
/// other types and more dimensions.
Tensor<float> read_float(const SafetensorsFile& file, const TensorEntry& entry, MemoryResource& memory,
                         MemoryCategory category);

/// A tensor to write: `bytes` is the caller's memory, valid until write_safetensors() returns.
using TensorToWrite = TensorEntry;
/// A span's values as bytes.
template <class T>
std::span<const uint8_t> bytes_of(std::span<const T> values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()};
}

/// Writes a file atomically (AtomicFile). Adds checksums to the metadata: of the header
/// ("header_xxh3") and of every tensor ("xxh3:…"); checksums in `metadata` belong to another file
/// and are dropped. The format is "nibblenet-float" unless the metadata name another. Tensor data
/// starts at a multiple of 8 bytes, since spaces pad the header. Tensors of wide elements come
/// first, so each starts at a multiple of its element; else the order is kept. Throws IoError with
/// the reason of the operating system, ShapeError when bytes and sizes disagree, FormatError for
/// names that occur twice, are reserved or not UTF-8.
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace nibblenet
