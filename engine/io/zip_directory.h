#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/file_content.h"

namespace nibblenet {

/// One file in a zip archive in memory. Name and bytes point into the archive.
struct ZipEntry {
  std::string_view name;
  std::span<const uint8_t> bytes;  ///< the stored bytes: the content, unless `compressed`
  bool compressed = false;
  uint32_t crc = 0;  ///< CRC-32 in the directory; 0 when the writer computed none
};

/// Whether bytes begin like a zip archive with an entry.
bool looks_like_zip(std::span<const uint8_t> bytes);

/// Reads the entries of a zip archive, in the order of their contents. Sizes and checksums come
/// from the central directory, since local headers may leave them to a descriptor behind the data.
/// Reads zip64, but no encrypted entries and no archives over several disks. Throws FormatError,
/// naming `file`, unless
///  - every name occurs once, is relative and has no "..";
///  - every content lies between its local header and the directory, and no two overlap;
///  - each local header agrees with the directory.
/// Layout: PKWARE's APPNOTE, sections 4.3.6 to 4.3.16 and 4.5.3.
std::vector<ZipEntry> read_zip_directory(std::span<const uint8_t> archive, const std::string& file);

/// Reads the directory alone, and returns the names of its entries. Throws FormatError for a broken
/// one, and for an archive that is larger than its entries can make it.
std::vector<std::string> zip_names(const InputFile& archive, const std::string& file);

/// CRC-32 of some bytes, as in zip archives.
uint32_t crc32_of(std::span<const uint8_t> bytes);

}  // namespace nibblenet
