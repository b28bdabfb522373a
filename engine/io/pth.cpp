#include "engine/io/pth.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "engine/io/pth_container.h"
#include "engine/io/safetensors_header.h"

namespace nibblenet {
namespace {

/// Keys under which training scripts put a state dict beside an optimizer's, and those of weights
/// averaged over steps.
constexpr std::array<std::string_view, 8> wrappers = {"state_dict", "model_state_dict", "model",  "net",
                                                      "network",    "weights",          "params", "module"};
constexpr std::array<std::string_view, 8> averaged = {"model_ema", "ema_state_dict", "state_dict_ema", "ema",
                                                      "ema_model", "params_ema",     "swa_state_dict", "swa_model"};

constexpr int most_wrappers = 8;  // around each other; a cycle ends here

// Tensors that share storages, or repeat their elements (a stride of 0), take more memory than the
// file. A real network shares a few weights; a hostile file shares them to fill the memory.
constexpr uint64_t most_unpacked_growth = 8;
constexpr uint64_t unpacked_allowance = 1 << 20;

struct NamedRecord {
  std::string_view name;
  const PthTensorRecord* tensor;
};

/// Looks for the state dict inside what was saved.
class StateDictFinder {
 public:
  StateDictFinder(const PthContents& contents, const std::string& file)
      : heap_(contents.heap), objects_(contents.objects), file_(file) {}

  /// `key`, unless empty, is the key of the dict of tensors, or a prefix of their names.
  std::vector<NamedRecord> find(PickleId root, std::string& key) {
    if (heap_[root].kind == PickleKind::object)
      fail<FormatError>("{}: it holds an object of {}, which only its own source code can load; {}", file_,
                        objects_.class_of(root), pth_advice);
    if (heap_[root].kind != PickleKind::dict)
      fail<FormatError>("{}: it holds no dict of tensors; {}", file_, pth_advice);
    const PickleId dict = unwrapped(root, key);
    std::vector<NamedRecord> tensors = tensors_of(dict);
    if (tensors.empty()) fail<FormatError>("{}: it holds no tensors{}; {}", file_, keys_of(dict), advice_for(dict));
    std::set<std::string_view> names;
    for (const NamedRecord& each : tensors)
      if (!names.insert(each.name).second)
        fail<FormatError>("{}: the tensor {} occurs twice; fetch or write the file again", file_, in_quotes(each.name));
    return tensors;
  }
  /// One line for each choice among several dicts.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  /// Calls visit(key, value) for every pair of a dict whose key is a text.
  void for_each(PickleId dict, auto&& visit) const {
    const std::vector<PickleId>& items = heap_[dict].items;
    for (size_t i = 0; i + 1 < items.size(); i += 2)
      if (heap_[items[i]].kind == PickleKind::text) visit(heap_[items[i]].text, items[i + 1]);
  }

  struct Wrapped {
    std::string_view key;
    PickleId dict;
  };

  /// Whether a value is a dict of tensors or of dicts, and not one of options, for instance.
  bool may_hold_tensors(PickleId id) const {
    if (heap_[id].kind != PickleKind::dict) return false;
    bool found = false;
    for_each(id, [&](std::string_view key, PickleId value) {
      const PickleKind kind = heap_[value].kind;
      found = found || objects_.tensor(value) != nullptr || kind == PickleKind::dict ||
              (kind == PickleKind::object && key.ends_with(".weight"));
    });
    return found;
  }

  /// The dict under the first of these keys that has one.
  std::optional<Wrapped> wrapped(PickleId dict, std::span<const std::string_view> keys) const {
    for (const std::string_view wrapper : keys) {
      std::optional<Wrapped> found;
      for_each(dict, [&](std::string_view key, PickleId value) {
        if (key == wrapper && may_hold_tensors(value)) found = {wrapper, value};
      });
      if (found) return found;
    }
    return std::nullopt;
  }

  /// The innermost dict of tensors. Clears `wanted` once it has selected a dict.
  PickleId unwrapped(PickleId dict, std::string& wanted) {
    bool chosen = false;  // by `wanted`
    for (int depth = 0; depth <= most_wrappers; ++depth) {
      const std::string_view key = wanted;
      if (const std::optional<Wrapped> asked = wrapped(dict, {&key, 1}); asked && !key.empty()) {
        chosen = true;
        wanted.clear();
        dict = asked->dict;
        continue;
      }
      const std::optional<Wrapped> plain = wrapped(dict, wrappers), mean = wrapped(dict, averaged);
      if (!plain && !mean) return dict;
      if (plain && mean && !chosen)
        notes_.push_back(fmt::format("takes the weights under {}, not the averaged ones under {}: --key {} takes those",
                                     in_quotes(plain->key), in_quotes(mean->key), mean->key));
      if (!plain && !chosen) notes_.push_back(fmt::format("takes the averaged weights under {}", in_quotes(mean->key)));
      dict = plain ? plain->dict : mean->dict;
    }
    fail<FormatError>("{}: more than {} dicts lie in each other; {}", file_, most_wrappers, pth_advice);
  }

  std::vector<NamedRecord> tensors_of(PickleId dict) const {
    std::vector<NamedRecord> tensors;
    for_each(dict, [&](std::string_view key, PickleId value) {
      if (const PthTensorRecord* tensor = objects_.tensor(value)) tensors.push_back({key, tensor});
      if (heap_[value].kind == PickleKind::object && (key.ends_with(".weight") || key.ends_with(".bias")))
        fail<FormatError>("{}: {} is made by {}, which this program does not know; {}", file_, in_quotes(key),
                          objects_.class_of(value), pth_advice);
    });
    return tensors;
  }

  /// " under its keys 'epoch', 'weights' (an object of 'my.Net')", the first few of them.
  std::string keys_of(PickleId dict) const {
    std::string text;
    int shown = 0;
    for_each(dict, [&](std::string_view key, PickleId value) {
      if (++shown > 8) return;
      text += (shown == 1 ? " under its keys " : ", ") + in_quotes(key);
      if (heap_[value].kind == PickleKind::object) text += fmt::format(" (an object of {})", objects_.class_of(value));
    });
    return text;
  }

  /// What to do about a dict without tensors: take one of the dicts in it that has some.
  std::string advice_for(PickleId dict) const {
    std::string text;
    for_each(dict, [&](std::string_view key, PickleId value) {
      if (heap_[value].kind != PickleKind::dict || !text.empty()) return;
      for_each(value, [&](std::string_view, PickleId inner) {
        if (objects_.tensor(inner) != nullptr)
          text = fmt::format("choose the model with --key NAME, like --key {}", key);
      });
    });
    return text.empty() ? std::string(pth_advice) : text;
  }

  const PickleHeap& heap_;
  const PthObjects& objects_;
  const std::string& file_;
  std::vector<std::string> notes_;
};

/// Copies the elements of a strided tensor into row-major order. `from` begins with its first
/// element.
void gather(const PthTensor& tensor, std::span<const uint8_t> from, std::span<uint8_t> to) {
  const size_t element_bytes = tensor.element->bytes;
  std::vector<int64_t> index(tensor.sizes.size());
  for (size_t done = 0; done < to.size(); done += element_bytes) {
    size_t place = 0;
    for (size_t k = 0; k < index.size(); ++k) place += static_cast<size_t>(index[k] * tensor.strides[k]);
    std::memcpy(to.data() + done, from.data() + place * element_bytes, element_bytes);
    for (size_t k = index.size(); k-- > 0 && ++index[k] == tensor.sizes[k];) index[k] = 0;
  }
}

/// The tensors with their bytes. Throws FormatError when they take up far more than the file does.
std::vector<PthTensor> with_bytes(const std::vector<NamedRecord>& records, const PthObjects& objects,
                                  const std::string& file, uint64_t file_bytes) {
  std::vector<PthTensor> tensors;
  std::set<size_t> counted;
  uint64_t total = 0;
  const uint64_t limit = most_unpacked_growth * file_bytes + unpacked_allowance;
  for (const auto& [name, record] : records) {
    const PthStorage& storage = objects.storages()[record->view.storage];
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(record->elements, uint64_t{record->view.element->bytes}, &bytes) ||
        __builtin_add_overflow(total, bytes, &total) || total > limit)
      fail<FormatError>(
          "{}: its tensors up to {} take up more than {} bytes, the file has {}; save copies (clone()) "
          "of expanded tensors",
          file, in_quotes(name), limit, file_bytes);
    const bool first = counted.insert(record->view.storage).second;
    tensors.push_back({.name = std::string(name),
                       .element = record->view.element,
                       .sizes = record->sizes,
                       .strides = record->strides,
                       .offset = record->offset,
                       .elements = record->elements,
                       .storage = storage.data.subspan(static_cast<size_t>(record->view.begin),
                                                       static_cast<size_t>(record->view.bytes)),
                       .file_bytes = first ? static_cast<int64_t>(storage.bytes) : 0});
  }
  return tensors;
}

}  // namespace

bool PthTensor::contiguous() const {
  if (elements == 0) return true;
  int64_t dense = 1;
  for (size_t k = sizes.size(); k-- > 0; dense *= sizes[k])
    if (sizes[k] != 1 && strides[k] != dense) return false;
  return true;
}

PthFile::PthFile(const std::filesystem::path& path, const std::string& key)
    : path_(path), content_(read_pth_file(InputFile(path), path.string())), key_left_(key) {
  const std::string name = path.string();
  PthContents contents(name);
  read_pth(content_.bytes(), name, contents);
  StateDictFinder finder(contents, name);
  tensors_ = with_bytes(finder.find(contents.root, key_left_), contents.objects, name, content_.bytes().size());
  notes_ = finder.notes();
  big_endian_ = contents.big_endian;
  entries_ = std::move(contents.entries);
}

std::span<const uint8_t> PthFile::bytes_of(const PthTensor& tensor, std::vector<uint8_t>& scratch) const {
  const size_t element_bytes = tensor.element->bytes;
  const size_t bytes = static_cast<size_t>(tensor.elements) * element_bytes;
  if (bytes == 0) return {};
  const std::span<const uint8_t> from = tensor.storage.subspan(static_cast<size_t>(tensor.offset) * element_bytes);
  const bool contiguous = tensor.contiguous();
  if (contiguous && !big_endian_) return from.first(bytes);
  if (contiguous) {
    scratch.assign(from.begin(), from.begin() + static_cast<ptrdiff_t>(bytes));
  } else {
    scratch.resize(bytes);
    gather(tensor, from, scratch);
  }
  if (big_endian_) swap_byte_order(*tensor.element, scratch);
  return scratch;
}

int PthFile::verify() const {
  int checked = 0;
  for (const ZipEntry& entry : entries_) {
    if (entry.crc == 0) continue;  // not computed (torch.serialization.set_crc32_options), or empty
    if (const uint32_t actual = crc32_of(entry.bytes); actual != entry.crc)
      fail<FormatError>("{}: CRC-32 of {}: expected {:08x}, got {:08x}; the file is damaged, fetch or write it again",
                        path().string(), in_quotes(entry.name), entry.crc, actual);
    ++checked;
  }
  return checked;
}

bool is_pth(const std::filesystem::path& path) {
  const InputFile file(path);
  return looks_like_pth(file.read(0, std::min(file.size(), pth_signature_bytes)).bytes());
}

Tensor<float> read_float(const PthFile& file, const PthTensor& tensor, MemoryResource& memory,
                         MemoryCategory category) {
  if (tensor.sizes.size() > Shape::max_rank)
    fail<FormatError>("{}: {} has {} dimensions, at most {} are supported", file.path().string(),
                      in_quotes(tensor.name), tensor.sizes.size(), Shape::max_rank);
  Tensor<float> result(memory, Shape(tensor.sizes), category);
  std::vector<uint8_t> scratch;
  if (!floats_from(*tensor.element, file.bytes_of(tensor, scratch), result.view().span()))
    fail<FormatError>("{}: {} holds torch.{}{}, expected real numbers that float32 holds: {}", file.path().string(),
                      in_quotes(tensor.name), tensor.element->untyped() ? "uint8 without a type" : tensor.element->name,
                      tensor.element->dtype ? " too large for float32" : "", "float(), dequantize() or drop it");
  return result;
}

}  // namespace nibblenet
