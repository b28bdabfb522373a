#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

#include "engine/io/atomic_file.h"
#include "engine/io/pth.h"
#include "engine/io/safetensors_header.h"
#include "engine/io/zip_directory.h"

namespace nibblenet {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;

constexpr size_t alignment = 64;           // of every content, as torch.save aligns it
constexpr size_t local_header_bytes = 30;  // of a local header without name and extra field
constexpr uint16_t first_day = 0x21;       // 1980-01-01, the earliest a zip archive knows: equal models, equal files
constexpr uint64_t largest_file = std::numeric_limits<uint32_t>::max() - 1;

template <class T>
void append(std::string& text, T value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof value);
}

/// Writes a pickle of protocol 2.
class PickleWriter {
 public:
  PickleWriter() { text_ += "\x80\x02"sv; }
  std::string finish() { return std::move(text_ += '.'); }

  void op(std::string_view opcodes) { text_ += opcodes; }
  void global(std::string_view module, std::string_view name) {
    text_ += 'c';
    text_.append(module).append("\n").append(name).append("\n");
  }
  void text(std::string_view value) {
    text_ += 'X';
    append(text_, static_cast<uint32_t>(value.size()));
    text_ += value;
  }
  void integer(int64_t value) {
    if (value <= std::numeric_limits<int32_t>::max()) {
      text_ += 'J';
      append(text_, static_cast<int32_t>(value));
    } else {
      text_ += "\x8A\x08"sv;  // LONG1 of 8 bytes
      append(text_, value);
    }
  }
  void tuple(std::span<const int64_t> values) {
    text_ += '(';
    for (const int64_t value : values) integer(value);
    text_ += 't';
  }
  void empty_ordered_dict() {
    global("collections", "OrderedDict");
    text_ += ")R"sv;
  }

 private:
  std::string text_;
};

std::vector<int64_t> strides_of(const Shape& shape) {
  std::vector<int64_t> strides(static_cast<size_t>(shape.rank()), 1);
  for (size_t k = strides.size(); k-- > 1;)
    strides[k - 1] = strides[k] * std::max<int64_t>(shape[static_cast<int>(k)], 1);
  return strides;
}

/// OrderedDict([(name, torch._utils._rebuild_tensor_v2(storage i, 0, size, stride, False,
/// OrderedDict())), …])
std::string pickle_of(const std::vector<PthTensorToWrite>& tensors) {
  PickleWriter pickle;
  pickle.empty_ordered_dict();
  pickle.op("(");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Shape& shape = tensors[i].values.shape();
    pickle.text(tensors[i].name);
    pickle.global("torch._utils", "_rebuild_tensor_v2");
    pickle.op("((");
    pickle.text("storage");
    pickle.global("torch", "FloatStorage");
    pickle.text(std::to_string(i));
    pickle.text("cpu");
    pickle.integer(shape.elements());
    pickle.op("tQ");
    pickle.integer(0);
    pickle.tuple(shape.sizes());
    pickle.tuple(strides_of(shape));
    pickle.op("\x89");
    pickle.empty_ordered_dict();
    pickle.op("tR");
  }
  pickle.op("u");
  return pickle.finish();
}

/// A zip archive of stored entries, written from front to back.
class ZipWriter {
 public:
  explicit ZipWriter(AtomicFile& file) : file_(file) {}

  void add(const std::string& name, std::span<const uint8_t> content) {
    // The fields that both headers share: flags (UTF-8 names), method (stored), time, date, CRC-32,
    // sizes, length of the name.
    std::string common;
    append<uint16_t>(common, 0x0800);
    append<uint16_t>(common, 0);
    append<uint16_t>(common, 0);
    append<uint16_t>(common, first_day);
    append(common, crc32_of(content));
    append(common, static_cast<uint32_t>(content.size()));
    append(common, static_cast<uint32_t>(content.size()));
    append(common, static_cast<uint16_t>(name.size()));

    const uint64_t header_at = written_;
    const uint64_t unpadded = header_at + local_header_bytes + name.size() + 4;  // an extra field has a head of 4 bytes
    const size_t padding = (alignment - unpadded % alignment) % alignment;
    std::string header = "PK\x03\x04\x0A\x00"s + common;
    append(header, static_cast<uint16_t>(4 + padding));
    header += name + "FB";  // PyTorch's own id of the field that pads
    append(header, static_cast<uint16_t>(padding));
    header.append(padding, 'Z');
    write(header);
    write(content);

    directory_ += "PK\x01\x02\x0A\x00\x0A\x00"sv;
    directory_ += common;
    directory_.append(12, '\0');  // no extra field, comment, other disk, attributes
    append(directory_, static_cast<uint32_t>(header_at));
    directory_ += name;
    ++entries_;
  }

  void finish() {
    std::string end = "PK\x05\x06\x00\x00\x00\x00"s;
    append(end, entries_);
    append(end, entries_);
    append(end, static_cast<uint32_t>(directory_.size()));
    append(end, static_cast<uint32_t>(written_));
    append<uint16_t>(end, 0);
    write(directory_);
    write(end);
  }

 private:
  void write(std::span<const uint8_t> bytes) {
    file_.write(bytes);
    written_ += bytes.size();
  }
  void write(const std::string& text) { write(bytes_of(std::span<const char>(text))); }

  AtomicFile& file_;
  uint64_t written_ = 0;
  uint16_t entries_ = 0;
  std::string directory_;
};

void check(const std::vector<PthTensorToWrite>& tensors, const std::filesystem::path& path) {
  std::set<std::string_view> names;
  uint64_t total = 1 << 20;  // names, headers and padding
  for (const PthTensorToWrite& tensor : tensors) {
    if (!names.insert(tensor.name).second)
      fail<FormatError>("cannot write {}: two tensors have the name {}", path.string(), in_quotes(tensor.name));
    json_text(tensor.name, path);  // refuses what is not UTF-8
    total += static_cast<uint64_t>(tensor.values.elements()) * sizeof(float) + 4 * tensor.name.size() + 1024;
  }
  if (total > largest_file || tensors.size() > std::numeric_limits<uint16_t>::max() - 8)
    fail<FormatError>(
        "cannot write {}: {} tensors of {} bytes are more than a .pth without zip64 holds; write "
        "safetensors instead",
        path.string(), tensors.size(), total);
}

}  // namespace

void write_pth(const std::filesystem::path& path, const std::vector<PthTensorToWrite>& tensors) {
  check(tensors, path);
  AtomicFile file(path);
  ZipWriter zip(file);
  const std::string folder = "archive/";
  const auto add_text = [&](const std::string& name, const std::string& text) {
    zip.add(folder + name, bytes_of(std::span<const char>(text)));
  };
  add_text("data.pkl", pickle_of(tensors));
  add_text("byteorder", "little");
  for (size_t i = 0; i < tensors.size(); ++i)
    zip.add(folder + "data/" + std::to_string(i), bytes_of(tensors[i].values.span()));
  add_text("version", "3\n");
  zip.finish();
  file.commit();
}

}  // namespace nibblenet
