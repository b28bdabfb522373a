#pragma once

#include "engine/io/pth_objects.h"
#include "engine/io/zip_directory.h"

namespace nibblenet {

/// Advice in messages about a file of PyTorch that holds no state dict.
inline constexpr std::string_view pth_advice = "save a state dict instead: torch.save(model.state_dict(), FILE)";

/// The parts of a PyTorch file: the object that was saved, and the bytes of every storage.
struct PthContents {
  explicit PthContents(const std::string& file);

  PickleHeap heap;
  PthObjects objects;
  PickleId root = 0;              ///< what was saved
  bool big_endian = false;        ///< the storages' byte order
  std::vector<ZipEntry> entries;  ///< none in the old format
};

/// How many bytes of a file looks_like_pth() needs.
inline constexpr uint64_t pth_signature_bytes = 512;

/// Whether bytes begin like a zip archive, a pickle or a tar archive, and not like a safetensors
/// file.
bool looks_like_pth(std::span<const uint8_t> bytes);

/// Reads the whole file of PyTorch. Before that, checks what a file of its size must begin or end
/// with, so that a large one of another kind is refused at once: a zip archive's directory, or the
/// pickles and storages of the old format. Throws IoError or FormatError.
FileBytes read_pth_file(const InputFile& file, const std::string& name);

/// Reads either format (torch/serialization.py): the zip archive, or the old stream of pickles and
/// raw storages. Throws FormatError, also for TorchScript, whole modules and tar archives, with the
/// advice to save a state dict.
void read_pth(std::span<const uint8_t> bytes, const std::string& file, PthContents& contents);

}  // namespace nibblenet
