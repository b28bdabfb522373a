#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/pth.h"

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wrestrict"  // GCC 12 sees overlaps in sums of strings where there are none (PR 105651)
#endif

/// Files of PyTorch, byte by byte, as a test wants them: right or wrong.
namespace nibblenet::testing {

using namespace std::string_literals;

/// The file's tensor of that name. Throws FormatError when it has none.
inline const PthTensor& tensor_named(const PthFile& file, std::string_view name) {
  const auto found = std::ranges::find(file.tensors(), name, &PthTensor::name);
  if (found == file.tensors().end()) fail<FormatError>("there is no tensor {}", name);
  return *found;
}

template <class T>
std::string little_endian(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

/// Pieces of a pickle.
inline std::string global(const std::string& module, const std::string& name) {
  return "c"s + module + "\n"s + name + "\n";
}
inline std::string text(const std::string& value) {
  return "X"s + little_endian(static_cast<uint32_t>(value.size())) + value;
}
inline std::string integer(int64_t value) { return "\x8A\x08"s + little_endian(value); }
inline std::string tuple(const std::string& items) { return "("s + items + "t"; }
inline std::string integers(const std::vector<int64_t>& values) {
  std::string items;
  for (const int64_t value : values) items += integer(value);
  return tuple(items);
}
inline std::string call(const std::string& module, const std::string& name, const std::string& arguments) {
  return global(module, name) + arguments + "R";
}
inline std::string ordered_dict() { return call("collections", "OrderedDict", ")"); }
inline std::string dict(const std::string& items) { return "}("s + items + "u"; }
inline std::string pickle(const std::string& object) { return "\x80\x02"s + object + "."; }

inline std::string storage(const std::string& key, int64_t elements, const std::string& type = "FloatStorage",
                           const std::string& more = "") {
  return tuple(text("storage") + global(type == "UntypedStorage" ? "torch.storage" : "torch", type) + text(key) +
               text("cuda:0") + integer(elements) + more) +
         "Q";
}
inline std::string tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& sizes,
                          const std::vector<int64_t>& strides) {
  return call("torch._utils", "_rebuild_tensor_v2",
              tuple(storage + integer(offset) + integers(sizes) + integers(strides) + "\x89"s + ordered_dict()));
}
/// {"w": a tensor of those two float32, which storage "0" holds}
inline std::string two_floats() { return dict(text("w") + tensor(storage("0", 2), 0, {2}, {1})); }

/// An entry of a zip archive, and what may be wrong about it.
struct ZipPart {
  std::string name;
  std::string content;
  int64_t crc = -1;        ///< recorded in the directory; -1: the right one
  int64_t size = -1;       ///< recorded in the directory; -1: the right one
  int64_t header = -1;     ///< place of the local header as recorded in the directory; -1: the right one
  std::string local_name;  ///< in the local header; empty: the same
  uint16_t method = 0;
  uint16_t flags = 0x0808;
};

enum class Zip64 { none, end_record, everywhere };

/// As PyTorch writes it: sizes and checksum in the directory only, contents on multiples of 64
/// bytes.
inline std::string zip_of(const std::vector<ZipPart>& parts, Zip64 zip64 = Zip64::none,
                          const std::string& comment = "") {
  std::string file, directory;
  for (const ZipPart& part : parts) {
    const std::string& local_name = part.local_name.empty() ? part.name : part.local_name;
    const uint64_t header = part.header >= 0 ? static_cast<uint64_t>(part.header) : file.size();
    const size_t padding = 63 - (file.size() + 30 + local_name.size() + 4 + 63) % 64;
    file += "PK\x03\x04"s + little_endian<uint16_t>(0) + little_endian(part.flags) + little_endian(part.method) +
            std::string(16, '\0') + little_endian(static_cast<uint16_t>(local_name.size())) +
            little_endian(static_cast<uint16_t>(4 + padding)) + local_name + "FB"s +
            little_endian(static_cast<uint16_t>(padding)) + std::string(padding, 'Z') + part.content;
    const std::span<const uint8_t> content(reinterpret_cast<const uint8_t*>(part.content.data()), part.content.size());
    const uint32_t crc = part.crc >= 0 ? static_cast<uint32_t>(part.crc) : crc32_of(content);
    file += "PK\x07\x08"s + little_endian(crc) + std::string(8, '\0');

    const uint64_t size = part.size >= 0 ? static_cast<uint64_t>(part.size) : part.content.size();
    const bool large = zip64 == Zip64::everywhere;
    const std::string extra = !large ? ""
                                     : "XX\x02\x00??"s + "\x01\x00\x18\x00"s + little_endian(size) +
                                           little_endian(size) + little_endian(header);
    const auto field = [&](uint64_t value) { return little_endian(large ? ~0U : static_cast<uint32_t>(value)); };
    directory += "PK\x01\x02"s + std::string(4, '\0') + little_endian(part.flags) + little_endian(part.method) +
                 std::string(4, '\0') + little_endian(crc) + field(size) + field(size) +
                 little_endian(static_cast<uint16_t>(part.name.size())) +
                 little_endian(static_cast<uint16_t>(extra.size())) + std::string(10, '\0') + field(header) +
                 part.name + extra;
  }
  const uint64_t begin = file.size();
  file += directory;
  if (zip64 != Zip64::none) {
    const uint64_t record = file.size();
    file += "PK\x06\x06"s + little_endian<uint64_t>(44) + std::string(12, '\0') +
            little_endian<uint64_t>(parts.size()) + little_endian<uint64_t>(parts.size()) +
            little_endian<uint64_t>(directory.size()) + little_endian(begin);
    file += "PK\x06\x07"s + std::string(4, '\0') + little_endian(record) + little_endian<uint32_t>(1);
  }
  const bool full = zip64 == Zip64::everywhere;
  const auto count = little_endian(static_cast<uint16_t>(full ? 0xFFFF : parts.size()));
  return file + "PK\x05\x06"s + std::string(4, '\0') + count + count +
         little_endian(full ? ~0U : static_cast<uint32_t>(directory.size())) +
         little_endian(full ? ~0U : static_cast<uint32_t>(begin)) +
         little_endian(static_cast<uint16_t>(comment.size())) + comment;
}

inline std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

/// The parts of a file of the zip format that holds `object`.
inline std::vector<ZipPart> zip_parts(const std::string& object, const std::vector<std::string>& storages) {
  std::vector<ZipPart> parts = {{"m/data.pkl", pickle(object)}, {"m/version", "3\n"}};
  for (size_t i = 0; i < storages.size(); ++i) parts.push_back({"m/data/"s + std::to_string(i), storages[i]});
  return parts;
}
inline std::string zip_file(const std::string& object, const std::vector<std::string>& storages) {
  return zip_of(zip_parts(object, storages));
}

/// A file of the old format: `data` is every storage with its count.
inline std::string legacy_file(const std::string& object, const std::string& keys, const std::string& data) {
  const std::string system = dict(text("protocol_version") + integer(1001) + text("little_endian") + "\x88"s +
                                  text("type_sizes") + dict(text("long") + integer(4)));
  return pickle("\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19") + pickle(integer(1001)) + pickle(system) +
         pickle(object) + pickle("]("s + keys + "e") + data;
}

}  // namespace nibblenet::testing
