#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/safetensors.h"

namespace nibblenet {

/// Longest header that is read or written, the limit of the format's reference implementation.
inline constexpr uint64_t max_safetensors_header = 100'000'000;

/// Bytes of the little-endian length in front of the JSON.
inline constexpr uint64_t safetensors_prefix = 8;

/// Prefix of the metadata keys that hold checksums: "xxh3:<tensor>".
inline constexpr std::string_view checksum_prefix = "xxh3:";

/// Metadata keys and values that identify the files of this project.
inline constexpr std::string_view format_key = "format";
inline constexpr std::string_view version_key = "format_version";
inline constexpr std::string_view format_prefix = "nibblenet-";  ///< of all our formats
inline constexpr std::string_view float_format = "nibblenet-float";
/// The version whose header has a checksum. It differs in two bits from versions 1 and 2, which
/// have none.
inline constexpr std::string_view checked_version = "4";

/// The beginning of every header with a checksum; 16 hexadecimal digits follow.
inline constexpr std::string_view checked_start = R"({"__metadata__":{"header_xxh3":")";
inline constexpr std::string_view header_checksum_key = "header_xxh3";
inline constexpr size_t checksum_digits = 16;

/// Throws FormatError, naming `file`, when a header begins with a wrong checksum. The checksum
/// covers the length and the JSON, with zeros in place of its digits.
void check_header(std::span<const uint8_t> header, const std::string& file);

/// The value of a metadata key; empty where there is none.
std::string_view value_of(const std::map<std::string, std::string>& metadata, std::string_view key);

/// Throws FormatError for damaged metadata: they lack a checksum that their version demands, have
/// one that is not where check_header() looks, or hold a key that differs from one of ours by one
/// character, whose value would be lost. `checked`: check_header() found a checksum.
void check_keys(const std::map<std::string, std::string>& metadata, bool checked, const std::string& file);

/// XXH3 (64 bits) of some bytes as 16 hexadecimal digits.
std::string checksum_of(std::span<const uint8_t> bytes);

/// Computes the bytes of a tensor. Returns false when they are more than 2^62 or a size is
/// negative.
bool tensor_bytes(DType dtype, std::span<const int64_t> sizes, uint64_t& bytes);

/// `text`, for instance a name from a file, for a one-line message: in quotes, control characters
/// escaped, cut when long.
std::string in_quotes(std::string_view text);

/// `text` as a JSON string. Throws FormatError, naming the file `path` to be written, when it is
/// not UTF-8.
std::string json_text(const std::string& text, const std::filesystem::path& path);

/// The content of a header's JSON, checked.
struct SafetensorsHeader {
  struct Tensor {
    std::string name;
    DType dtype = DType::f32;
    std::vector<int64_t> sizes;
    uint64_t begin = 0;  ///< first byte within the data
    uint64_t end = 0;    ///< end within the data
  };
  std::map<std::string, std::string> metadata;
  std::vector<Tensor> tensors;  ///< in the order of the data, which they cover without gap or overlap
};

/// Parses the JSON of a file whose data is `data_bytes` long. Throws FormatError naming `file` for
/// anything but the format's own structure. The parser accepts three levels and nothing else, so
/// hostile nesting costs nothing.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes, const std::string& file);

}  // namespace nibblenet
