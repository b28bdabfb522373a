#pragma once

#include <memory>

#include "engine/io/pth_element.h"

namespace nibblenet {

/// One tensor of a state dict: a strided view of a storage, which lies in the file's bytes.
struct PthTensor {
  std::string name;
  const PthElement* element = nullptr;
  std::vector<int64_t> sizes;    ///< up to 8; none: a scalar
  std::vector<int64_t> strides;  ///< elements, never negative
  uint64_t offset = 0;           ///< elements
  uint64_t elements = 0;
  std::span<const uint8_t> storage;  ///< what element (i0, i1, …) lies in, at offset + Σ i_k · strides[k]
  int64_t file_bytes = 0;            ///< of its storage; 0 when an earlier tensor of the file has the same one

  /// Whether elements lie in row-major order without gaps.
  bool contiguous() const;
};

/// A state dict that PyTorch saved (torch.save), read into memory: the zip archive of 1.6 and
/// later, or the stream of earlier versions. Opening validates the archive, the pickle (nothing in
/// it is run), every storage and every tensor's bounds. The tensors together take at most what the
/// file holds. They are looked for in the file's dict, or under "state_dict", "model_state_dict",
/// "model" and so on, averaged weights ("model_ema") last. Whatever is no tensor is left out.
/// docs/formats.md lists what is understood.
///
/// Throws IoError where it cannot open, FormatError for anything wrong inside, naming the file.
class PthFile {
 public:
  /// Opens a file that torch.save wrote. `key`, unless empty, names the dict to look in. Throws
  /// IoError or FormatError.
  explicit PthFile(const std::filesystem::path& path, const std::string& key = "");
  ~PthFile();
  PthFile(PthFile&&) noexcept;
  PthFile& operator=(PthFile&&) noexcept;

  const std::filesystem::path& path() const;
  /// Size of the file in bytes.
  int64_t file_bytes() const;
  const std::vector<PthTensor>& tensors() const;  ///< in the order of the dict
  /// Which weights were taken where there are others, one line each.
  const std::vector<std::string>& notes() const;
  /// The key, where no dict has it: it may be a prefix of names. Empty otherwise.
  const std::string& key_left() const;
  const PthTensor* find(std::string_view name) const;
  /// Throws FormatError when there is no such tensor.
  const PthTensor& at(std::string_view name) const;

  /// The tensor's elements, row-major, in this machine's byte order: in the file's bytes where they
  /// lie there like that, else gathered in `scratch`.
  std::span<const uint8_t> bytes_of(const PthTensor& tensor, std::vector<uint8_t>& scratch) const;

  /// Recomputes the CRC-32 of every entry that has one and throws FormatError naming the first that
  /// differs. Returns how many were checked: none in the old format, nor where PyTorch was told to
  /// compute none.
  int verify() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Whether a file's content, not its name, says that PyTorch wrote it, or tar in its stead.
bool is_pth(const std::filesystem::path& path);

/// Any tensor of real numbers and up to 4 dimensions as float32: rounded from float64, exact from
/// all others. Throws FormatError for complex, quantized and untyped ones and for integers that
/// float32 cannot hold.
Tensor<float> read_float(const PthFile& file, const PthTensor& tensor, MemoryResource& memory, MemoryCategory category);

/// What is to be written: views of somebody's memory, valid until write_pth returns.
struct PthTensorToWrite {
  std::string name;
  TensorView<const float> values;
};

/// Writes an OrderedDict of contiguous float32 tensors as torch.save does, so that
/// torch.load(weights_only=True) takes it: a zip archive, stored, with every content on a multiple
/// of 64 bytes and a right CRC-32, pickle protocol 2. The same tensors give the same bytes. Atomic.
/// Throws IoError with the reason of the operating system, FormatError for names that are taken or
/// not UTF-8 and for more than 4 GB, which this format holds with zip64 only.
void write_pth(const std::filesystem::path& path, const std::vector<PthTensorToWrite>& tensors);

}  // namespace nibblenet
