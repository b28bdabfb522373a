#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibblenet {

/// One file inside a zip archive that is in memory.
struct ZipEntry {
  std::string_view name;           ///< points into the archive
  std::span<const uint8_t> bytes;  ///< its content, used in place
  bool compressed = false;         ///< `bytes` are what a compressor made of the content
  uint32_t crc = 0;                ///< CRC-32 as the directory records it; 0 where the writer computed none
};

/// Whether bytes begin as a zip archive with an entry does.
bool looks_like_zip(std::span<const uint8_t> bytes);

/// The entries of a zip archive, in the order of their contents, from its central directory alone,
/// as local headers may leave sizes and checksums to a descriptor behind the data. Zip64 is
/// understood; encrypted entries and archives over several disks are not. Throws FormatError,
/// naming `file`, unless every name is new, relative and free of "..", every content lies between
/// its local header and the directory, no two overlap, and each local header agrees with the
/// directory. Layout: PKWARE's APPNOTE, sections 4.3.6 to 4.3.16 and 4.5.3.
std::vector<ZipEntry> read_zip_directory(std::span<const uint8_t> archive, const std::string& file);

/// CRC-32 of bytes as zip archives record it.
uint32_t crc32_of(std::span<const uint8_t> bytes);

}  // namespace nibblenet
