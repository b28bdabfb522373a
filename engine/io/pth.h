#pragma once

#include "engine/io/file_content.h"
#include "engine/io/pth_element.h"
#include "engine/io/zip_directory.h"

namespace nibblenet {

/// One tensor of a state dict: a strided view of a storage, which lies in the file's bytes.
struct PthTensor {
  std::string name;
  const PthElement* element = nullptr;
  std::vector<int64_t> sizes;    ///< up to 8; none: a scalar
  std::vector<int64_t> strides;  ///< elements, never negative
  uint64_t offset = 0;           ///< elements
  uint64_t elements = 0;
  std::span<const uint8_t> storage;  ///< holds element (i0, i1, …) at offset + Σ i_k · strides[k]
  int64_t file_bytes = 0;            ///< of the storage; 0 when an earlier tensor of the file has the same one

  /// Whether elements lie in row-major order without gaps.
  bool contiguous() const;
};

/// A state dict that PyTorch saved (torch.save), read into memory: the zip archive of 1.6 and
/// later, or the stream of earlier versions. Opening validates the archive, the pickle (nothing in
/// it is run), every storage and every tensor's bounds. It refuses tensors that together take more
/// than 8 times the file plus 1 MiB. Tensors are found in the file's dict, or under "state_dict",
/// "model_state_dict", "model" and so on, averaged weights ("model_ema") last. Other values are
/// left out. docs/formats.md lists what is understood.
class PthFile {
 public:
  /// Opens a file that torch.save wrote. `key`, unless empty, names the dict to look in. Throws
  /// IoError when it cannot be opened, FormatError for any fault inside, naming the file.
  explicit PthFile(const std::filesystem::path& path, const std::string& key = "");

  const std::filesystem::path& path() const { return path_; }
  /// Size of the file in bytes.
  int64_t file_bytes() const { return static_cast<int64_t>(content_.bytes().size()); }
  const std::vector<PthTensor>& tensors() const { return tensors_; }  ///< in the order of the dict
  /// One line for each choice of weights among several.
  const std::vector<std::string>& notes() const { return notes_; }
  /// The key when no dict has it, and it may be a prefix of names; else empty.
  const std::string& key_left() const { return key_left_; }

  /// The tensor's elements, row-major, in this machine's byte order. Returns the file's own bytes
  /// when they have that form, else a copy in `scratch`.
  std::span<const uint8_t> bytes_of(const PthTensor& tensor, std::vector<uint8_t>& scratch) const;

  /// Recomputes the CRC-32 of every entry that has one. Returns how many that are: none in the old
  /// format, or when PyTorch was told to compute none. Throws FormatError naming the first that
  /// differs.
  int verify() const;

 private:
  std::filesystem::path path_;
  FileBytes content_;
  std::string key_left_;
  std::vector<std::string> notes_;
  bool big_endian_ = false;
  std::vector<ZipEntry> entries_;
  std::vector<PthTensor> tensors_;
};

/// Whether a file's content, not its name, is that of a PyTorch file (or a tar archive, which
/// PyTorch once wrote).
bool is_pth(const std::filesystem::path& path);

/// Reads a tensor of real numbers and up to 4 dimensions as float32: rounded from float64, exact
/// from all others. Throws FormatError for complex, quantized and untyped ones and for integers
/// that float32 cannot hold.
Tensor<float> read_float(const PthFile& file, const PthTensor& tensor, MemoryResource& memory, MemoryCategory category);

/// A tensor to write: a view of the caller's memory, valid until write_pth() returns.
struct PthTensorToWrite {
  std::string name;
  TensorView<const float> values;
};

/// Writes an OrderedDict of contiguous float32 tensors as torch.save does; torch.load with
/// weights_only=True reads it. The file is a zip archive without compression, with every content at
/// a multiple of 64 bytes and its CRC-32, and a pickle of protocol 2. Equal tensors give equal
/// bytes. Atomic. Throws IoError with the reason of the operating system, FormatError for names
/// that occur twice or are not UTF-8 and for more than 4 GB, which need zip64.
void write_pth(const std::filesystem::path& path, const std::vector<PthTensorToWrite>& tensors);

}  // namespace nibblenet
