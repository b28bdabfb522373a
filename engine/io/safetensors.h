#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/tensor.h"

namespace nibblenet {

/// Element types of the safetensors format that this project reads or writes.
enum class DType : uint8_t { boolean, u8, i8, u16, i16, f16, bf16, i32, u32, f32, i64, u64, f64 };
size_t size_of(DType dtype);
std::string_view to_string(DType dtype);  ///< "F32", …: the format's own names

/// One tensor inside an open file. `bytes` points into what SafetensorsFile holds.
struct TensorEntry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> sizes;  ///< any rank
  std::span<const uint8_t> bytes;
};

/// A safetensors file, read into memory, fully validated on opening: header length against file
/// size, JSON shape, known types, every size and offset, no overlap, no gap, no duplicate names,
/// and the header's checksum where it has one. The data is read once the header is valid; verify()
/// checks its checksums. Throws IoError (cannot open, or cut short by another process meanwhile) or
/// FormatError (anything wrong inside), naming the file.
class SafetensorsFile {
 public:
  /// Reads the file and checks its header. Throws IoError or FormatError.
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::filesystem::path& path() const;
  /// Size of the file in bytes.
  int64_t file_bytes() const;
  int64_t header_bytes() const;  ///< the 8-byte length and the JSON: everything that is not tensor data
  const std::map<std::string, std::string>& metadata() const;
  const std::vector<TensorEntry>& tensors() const;  ///< in file order
  const TensorEntry* find(std::string_view name) const;
  /// Throws FormatError when there is no such tensor.
  const TensorEntry& at(std::string_view name) const;

  /// Recomputes the xxh3 checksum of every tensor that has one (metadata "xxh3:<tensor>") and
  /// throws FormatError naming the first that differs, or has none in a file that has others and
  /// names our format. Returns how many were checked.
  int verify() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The metadata of a file whose header is valid, without reading its data. Throws IoError or
/// FormatError.
std::map<std::string, std::string> safetensors_metadata(const std::filesystem::path& path);

/// An F32, F16, BF16 or F64 tensor as float32, whatever its rank up to 4. Throws FormatError for
/// other types.
Tensor<float> read_float(const SafetensorsFile& file, const TensorEntry& entry, MemoryResource& memory,
                         MemoryCategory category);

/// What is to be written: views of somebody's memory, valid until write_safetensors returns.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> sizes;
  std::span<const uint8_t> bytes;
};
/// A span's values as bytes.
template <class T>
std::span<const uint8_t> bytes_of(std::span<const T> values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()};
}

/// Writes a file atomically: a temporary file in the same folder, flushed to the disk, then renamed
/// over `path`, so that a killed run or a full disk leaves the old file or the new one, never half
/// of one. Adds checksums to the metadata: of the header ("header_xxh3") and of every tensor
/// ("xxh3:…"). Checksums handed in are dropped: they belong to another file. Where the metadata
/// name no format, it is "nibblenet-float". Tensor data starts on a multiple of 8 bytes (the header
/// is padded with spaces), tensors of wide elements come first, else the order is kept: so each
/// starts on a multiple of its element. Throws IoError with the reason of the operating system,
/// ShapeError when bytes and sizes disagree, FormatError for names that are taken, reserved or not
/// UTF-8.
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace nibblenet
