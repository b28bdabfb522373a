#include "engine/io/pth_container.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <ranges>
#include <set>

#include "engine/io/safetensors_header.h"
#include "engine/quant/text.h"

namespace nibblenet {
namespace {

using namespace std::string_view_literals;

/// LONG1 of 10 bytes, STOP: the number 0x1950a86a20f9469cfc6c, with which the old format begins
/// after PROTO.
constexpr std::string_view legacy_magic = "\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19."sv;
constexpr int64_t legacy_version = 1001;
constexpr uint8_t pickle_protocol = 0x80;  // the opcode that every pickle begins with
constexpr uint8_t pickle_frame = 0x95;
constexpr std::string_view tar_magic = "ustar";
constexpr size_t tar_magic_at = 257;

std::string_view text_of(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool looks_like_tar(std::span<const uint8_t> bytes) {
  return bytes.size() > tar_magic_at && text_of(bytes.subspan(tar_magic_at)).starts_with(tar_magic);
}

[[noreturn]] void refuse_tar(const std::string& file) {
  fail<FormatError>("{}: a tar archive, perhaps of a PyTorch older than 0.1.10; load it there and {}", file,
                    pth_advice);
}

/// The folder, with its slash, that holds everything of a zip archive of PyTorch.
std::string_view top_folder(auto&& names, const std::string& file) {
  std::optional<std::string_view> folder;
  for (const std::string_view name : names) {
    const size_t slash = name.find('/');
    if (slash == name.npos || name.substr(slash + 1) != "data.pkl") continue;
    if (folder) fail<FormatError>("{}: it holds several models; {}", file, pth_advice);
    folder = name.substr(0, slash + 1);
  }
  if (!folder) fail<FormatError>("{}: a zip archive, but none of PyTorch: it has no data.pkl", file);
  return *folder;
}

void check_version(std::span<const uint8_t> content, const std::string& file) {
  std::string_view text = text_of(content);
  while (text.ends_with('\n')) text.remove_suffix(1);
  const std::optional<int64_t> version = parse_integer(text);
  if (!version || *version < 1 || *version > 10)
    fail<FormatError>("{}: PyTorch's file version {}, versions 1 to 10 are supported", file, in_quotes(text));
}

void read_zip(std::span<const uint8_t> bytes, const std::string& file, PthContents& contents) {
  contents.entries = read_zip_directory(bytes, file);
  const std::string_view folder = top_folder(contents.entries | std::views::transform(&ZipEntry::name), file);
  std::map<std::string, std::span<const uint8_t>, std::less<>> found;
  for (const ZipEntry& entry : contents.entries) {
    if (!entry.name.starts_with(folder)) continue;
    const std::string_view name = entry.name.substr(folder.size());
    if (name == "constants.pkl" || name.starts_with("code/"))
      fail<FormatError>("{}: it is a TorchScript program, not a state dict; {}", file, pth_advice);
    found.emplace(name, entry.bytes);
  }
  for (const ZipEntry& entry : contents.entries)
    if (entry.compressed)
      fail<FormatError>("{}: the entry {} is compressed, which PyTorch never does; unpack it and zip it again with -0",
                        file, in_quotes(entry.name));
  if (!found.contains("version")) fail<FormatError>("{}: a zip archive, but none of PyTorch: it has no version", file);
  check_version(found["version"], file);
  if (const auto order = found.find("byteorder"); order != found.end()) {
    const std::string_view text = text_of(order->second);
    if (text != "little" && text != "big")
      fail<FormatError>("{}: byteorder {}, there are little and big", file, in_quotes(text));
    contents.big_endian = text == "big";
  }

  PickleSource pickle{.bytes = found["data.pkl"], .position = 0, .name = file + "/data.pkl"};
  contents.root = run_pickle(pickle, contents.heap, contents.objects);
  if (pickle.position != pickle.bytes.size())
    fail<FormatError>("{}: {} bytes follow the end of the pickle", pickle.name, pickle.bytes.size() - pickle.position);
  for (PthStorage& storage : contents.objects.storages()) {
    const auto data = found.find("data/" + std::string(storage.key));
    if (data == found.end()) fail<FormatError>("{}: it has no storage {}", file, in_quotes(storage.key));
    if (data->second.size() != storage.bytes)
      fail<FormatError>("{}: storage {} should have {} bytes but has {}", file, in_quotes(storage.key), storage.bytes,
                        data->second.size());
    storage.data = data->second;
  }
}

/// Reads the storages of the old format: for each key of the list, in order, the number of elements
/// and the elements.
void read_legacy_storages(PickleSource& source, PickleId keys, PthContents& contents) {
  const auto cut_off = [&](uint64_t expected) {
    fail<FormatError>(
        "{}: {} bytes of tensors should follow at byte {} but only {} do; the file is cut off, fetch it "
        "again",
        source.name, expected, source.position, source.bytes.size() - source.position);
  };
  if (contents.heap[keys].kind != PickleKind::list)
    fail<FormatError>("{}: expected the list of its storages, found something else", source.name);
  std::set<std::string_view> seen;
  for (const PickleId id : contents.heap[keys].items) {
    const PickleValue& key = contents.heap[id];
    if (key.kind != PickleKind::text || !seen.insert(key.text).second)
      fail<FormatError>("{}: the list of its storages is no list of different names", source.name);
    const size_t place = contents.objects.storage_of(key.text);
    PthStorage& storage = contents.objects.storages()[place];
    uint64_t elements = 0;
    if (source.bytes.size() - source.position < sizeof elements) cut_off(sizeof elements);
    std::memcpy(&elements, source.bytes.data() + source.position, sizeof elements);
    source.position += sizeof elements;
    if (elements != storage.bytes / contents.objects.element_of(place).bytes)
      fail<FormatError>("{}: storage {} should have {} elements but has {}", source.name, in_quotes(key.text),
                        storage.bytes / contents.objects.element_of(place).bytes, elements);
    if (storage.bytes > source.bytes.size() - source.position) cut_off(storage.bytes);
    storage.data = source.bytes.subspan(source.position, static_cast<size_t>(storage.bytes));
    source.position += static_cast<size_t>(storage.bytes);
  }
  if (seen.size() != contents.objects.storages().size())
    fail<FormatError>("{}: {} storages are listed, {} are used", source.name, seen.size(),
                      contents.objects.storages().size());
  if (source.position != source.bytes.size())
    fail<FormatError>("{}: {} bytes follow the last tensor", source.name, source.bytes.size() - source.position);
}

/// Reads the pickles of the format before PyTorch 1.6 and returns the list of its storages, which
/// begin at the source's position.
PickleId read_legacy_pickles(PickleSource& source, PthContents& contents) {
  // Protocol 4 and later put the pickle into a frame.
  const std::string& file = source.name;
  const std::span<const uint8_t> bytes = source.bytes;
  size_t begin = 2;
  if (bytes.size() > begin && bytes[begin] == pickle_frame) begin += 1 + sizeof(uint64_t);
  if (!text_of(bytes).substr(std::min(begin, bytes.size())).starts_with(legacy_magic))
    fail<FormatError>("{}: a pickle that torch.save did not write, or a file cut off; {}", file, pth_advice);
  source.position = begin + legacy_magic.size();
  const PickleValue& version = contents.heap[run_pickle(source, contents.heap, contents.objects)];
  if (version.kind != PickleKind::integer || version.integer != legacy_version)
    fail<FormatError>("{}: PyTorch's old file format of a version other than {}", file, legacy_version);
  if (contents.heap[run_pickle(source, contents.heap, contents.objects)].kind != PickleKind::dict)
    fail<FormatError>("{}: expected the system information, found something else", file);
  contents.root = run_pickle(source, contents.heap, contents.objects);
  return run_pickle(source, contents.heap, contents.objects);
}

/// Reads the format before PyTorch 1.6. Its elements are always little-endian: writers on
/// big-endian machines swap them, and PyTorch ignores the flag in the system information when it
/// reads.
void read_legacy(std::span<const uint8_t> bytes, const std::string& file, PthContents& contents) {
  PickleSource source{.bytes = bytes, .position = 0, .name = file};
  read_legacy_storages(source, read_legacy_pickles(source, contents), contents);
}

/// Throws FormatError where a file of the old format that begins with `head` cannot have `size`
/// bytes. Returns how long a head tells that; 0: this one did.
uint64_t check_legacy_size(std::span<const uint8_t> head, const std::string& file, uint64_t size) {
  PthContents contents(file);
  PickleSource source{.bytes = head, .position = 0, .name = file};
  try {
    read_legacy_pickles(source, contents);
  } catch (const PickleCutOff& cut_off) {
    if (cut_off.needed > size)
      fail<FormatError>("{}: its pickle goes on for {} bytes but the file has {}; it is cut off, fetch it again", file,
                        cut_off.needed, size);
    return cut_off.needed;
  }
  uint64_t expected = source.position;
  for (const PthStorage& storage : contents.objects.storages())
    if (__builtin_add_overflow(expected, storage.bytes, &expected) ||
        __builtin_add_overflow(expected, sizeof(uint64_t), &expected))
      expected = UINT64_MAX;
  if (expected < size) fail<FormatError>("{}: {} bytes follow the last tensor", file, size - expected);
  if (expected > size)
    fail<FormatError>("{}: its tensors should end at byte {}, it has {}; the file is cut off, fetch it again", file,
                      expected, size);
  return 0;
}

bool is_safetensors(std::span<const uint8_t> bytes) { return bytes.size() > 8 && bytes[8] == '{'; }

}  // namespace

PthContents::PthContents(const std::string& file) : heap(file), objects(heap, file) {}

bool looks_like_pth(std::span<const uint8_t> bytes) {
  // A safetensors file begins with a length, whose bytes may have any values, before its JSON.
  if (bytes.empty() || is_safetensors(bytes)) return false;
  return looks_like_zip(bytes) || bytes[0] == pickle_protocol || looks_like_tar(bytes);
}

FileBytes read_pth_file(const InputFile& file, const std::string& name) {
  constexpr uint64_t small = uint64_t{16} << 20;
  const FileBytes head = file.read(0, std::min(file.size(), pth_signature_bytes));
  if (looks_like_zip(head.bytes())) {
    top_folder(zip_names(file, name), name);
  } else if (looks_like_tar(head.bytes())) {
    refuse_tar(name);
  } else if (file.size() > small) {
    for (uint64_t bytes = small, needed = 1; needed > 0 && bytes < file.size(); bytes = std::max(8 * bytes, needed))
      needed = check_legacy_size(file.read(0, bytes).bytes(), name, file.size());
  }
  return file.read_all();
}

void read_pth(std::span<const uint8_t> bytes, const std::string& file, PthContents& contents) {
  if (looks_like_zip(bytes)) return read_zip(bytes, file, contents);
  if (looks_like_tar(bytes)) refuse_tar(file);
  read_legacy(bytes, file, contents);
}

}  // namespace nibblenet
