#include "engine/io/pth_objects.h"

#include <algorithm>
#include <array>

#include "engine/io/safetensors_header.h"

namespace nibblenet {
namespace {

constexpr size_t most_pth_dimensions = 8;
constexpr size_t most_pth_tensors = size_t{1} << 17;
constexpr uint64_t most_elements = uint64_t{1} << 58;  // Shape counts no further, nor does a tensor of 16-byte elements

/// Whether a symbol is of a module or function that runs something, which no checkpoint needs.
bool runs_programs(std::string_view symbol) {
  constexpr std::array<std::string_view, 20> modules = {
      "os",     "posix",  "nt",      "subprocess", "sys",      "shutil",     "socket", "importlib", "runpy",     "pty",
      "ctypes", "pickle", "_pickle", "marshal",    "commands", "webbrowser", "code",   "timeit",    "torch.hub", "pip"};
  constexpr std::array<std::string_view, 10> functions = {
      "eval", "exec", "execfile", "compile", "open", "file", "input", "load", "_load_from_bytes", "__import__"};
  const std::string_view module = symbol.substr(0, symbol.find('\n')), name = symbol.substr(module.size() + 1);
  const bool standard = module == "builtins" || module == "__builtin__" || module.starts_with("torch");
  return std::ranges::find(modules, module) != modules.end() ||
         std::ranges::find(modules, module.substr(0, module.find('.'))) != modules.end() ||
         (standard && std::ranges::find(functions, name) != functions.end());
}

}  // namespace

std::string symbol_name(std::string_view symbol) {
  std::string name(symbol);
  std::ranges::replace(name, '\n', '.');
  return in_quotes(name);
}

PickleId PthObjects::call(std::string_view symbol, PickleId arguments) {
  if (symbol == "collections\nOrderedDict") return make_dict(arguments);
  if (symbol == "torch._utils\n_rebuild_tensor")
    return make_tensor(items(arguments, 4, "the arguments of a tensor"), nullptr);
  if (symbol == "torch._utils\n_rebuild_tensor_v2")
    return make_tensor(items(arguments, 6, "the arguments of a tensor"), nullptr);
  if (symbol == "torch._utils\n_rebuild_tensor_v3") {
    const auto& values = items(arguments, 7, "the arguments of a tensor");
    const PickleValue& dtype = heap_[values[6]];
    const PthElement* element = dtype.kind == PickleKind::symbol ? find_pth_dtype(dtype.text) : nullptr;
    if (element == nullptr)
      refuse("{} is no element type known here",
             dtype.kind == PickleKind::symbol ? symbol_name(dtype.text) : "what stands in its place");
    return make_tensor(values, element);
  }
  if (symbol == "torch._utils\n_rebuild_parameter")
    return expect_tensor(items(arguments, 3, "the arguments of a parameter")[0]);
  if (symbol == "torch._utils\n_rebuild_parameter_with_state")
    return expect_tensor(items(arguments, 4, "the arguments of a parameter")[0]);
  if (symbol == "torch.nn.parameter\nParameter") return make_parameter(arguments);
  if (symbol == "torch\nSize") {
    const PickleId size = items(arguments, 1, "a size")[0];
    counts(size, "a size");
    return size;
  }
  if (symbol == "collections\ndefaultdict") return heap_.add({.kind = PickleKind::dict});
  if (symbol == "collections\nCounter") return make_counter(arguments);
  if (symbol == "torch._tensor\n_rebuild_from_type_v2") return make_subclass(arguments);
  if (runs_programs(symbol))
    fail<FormatError>(
        "{}: it asks to call {}, which is no part of a state dict (nothing was run); if you trust the file, load it in "
        "PyTorch and save a state dict: torch.save(model.state_dict(), FILE)",
        file_, symbol_name(symbol));
  return heap_.add({.kind = PickleKind::object, .text = symbol});
}

std::string PthObjects::class_of(PickleId object) const { return symbol_name(heap_[object].text); }

void PthObjects::build(PickleId object, PickleId state) {
  const PickleKind kind = heap_[object].kind;
  if (kind == PickleKind::dict) return;  // attributes such as _metadata, the versions of a network's modules
  if (kind != PickleKind::parameter) refuse("it gives a state to something that has none");
  // Parameters of PyTorch before 0.4: (data, gradient, hooks, requires_grad, volatile), or as a
  // tensor (storage, offset, size, stride); a later one (requires_grad, volatile, hooks) adds no
  // values.
  const std::vector<PickleId> values = items(state, 3, "the state of a parameter");
  if (values.size() == 3) return;
  const PickleId data = values.size() == 4 ? make_tensor(values, nullptr) : expect_tensor(values[0]);
  heap_[object].items.clear();
  heap_.append(object, data);
}

PickleId PthObjects::load(PickleId persistent_id) {
  const auto& id = items(persistent_id, 1, "a persistent id");
  const std::string_view kind = text(id[0], "a persistent id");
  if (kind == "module")
    fail<FormatError>(
        "{}: it is a whole pickled module, which only its own source code can load; save a state dict instead: "
        "torch.save(model.state_dict(), FILE)",
        file_);
  if (kind != "storage" || id.size() < 5) refuse("the persistent id {} is not known", in_quotes(kind));
  const PickleValue& type = heap_[id[1]];
  const PthElement* element = type.kind == PickleKind::symbol ? find_pth_storage(type.text) : nullptr;
  if (element == nullptr) refuse("a storage of an unknown type {}", symbol_name(type.text));
  const std::string_view key = text(id[2], "the key of a storage");
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(count(id[4], "the size of a storage"), uint64_t{element->bytes}, &bytes))
    refuse("storage {} is too large to address", in_quotes(key));

  const auto [place, fresh] = keys_.emplace(key, storages_.size());
  if (fresh) {
    storages_.push_back({.key = key, .bytes = bytes});
    elements_.push_back(element);
  } else if (storages_[place->second].bytes != bytes) {
    refuse("storage {} has {} bytes here and {} there", in_quotes(key), storages_[place->second].bytes, bytes);
  }
  PthStorageView view{.storage = place->second, .element = element, .begin = 0, .bytes = bytes};
  if (id.size() > 5 && heap_[id[5]].kind != PickleKind::none) {
    const auto& part = items(id[5], 3, "the view of a storage");  // key, offset, size
    uint64_t end = 0;
    if (__builtin_mul_overflow(count(part[1], "the view of a storage"), uint64_t{element->bytes}, &view.begin) ||
        __builtin_mul_overflow(count(part[2], "the view of a storage"), uint64_t{element->bytes}, &view.bytes) ||
        __builtin_add_overflow(view.begin, view.bytes, &end) || end > bytes)
      refuse("a view reaches beyond storage {}", in_quotes(key));
  }
  views_.push_back(view);
  return heap_.add({.kind = PickleKind::storage, .integer = static_cast<int64_t>(views_.size() - 1)});
}

size_t PthObjects::storage_of(std::string_view key) const {
  const auto found = keys_.find(key);
  if (found == keys_.end()) refuse("it has a storage {} that no tensor uses", in_quotes(key));
  return found->second;
}

const PthTensorRecord* PthObjects::tensor(PickleId id) const {
  const PickleValue* value = &heap_[id];
  if (value->kind == PickleKind::parameter && !value->items.empty()) value = &heap_[value->items[0]];
  return value->kind == PickleKind::tensor ? &tensors_[static_cast<size_t>(value->integer)] : nullptr;
}

const std::vector<PickleId>& PthObjects::items(PickleId tuple, size_t least, std::string_view what) const {
  const PickleValue& value = heap_[tuple];
  if (value.kind != PickleKind::tuple || value.items.size() < least)
    refuse("{} should be a tuple of {} or more values", what, least);
  return value.items;
}

uint64_t PthObjects::count(PickleId id, std::string_view what) const {
  const PickleValue& value = heap_[id];
  if (value.kind != PickleKind::integer || value.integer < 0) refuse("{} is no number of 0 or more", what);
  return static_cast<uint64_t>(value.integer);
}

std::string_view PthObjects::text(PickleId id, std::string_view what) const {
  if (heap_[id].kind != PickleKind::text) refuse("{} is no text", what);
  return heap_[id].text;
}

std::vector<int64_t> PthObjects::counts(PickleId id, std::string_view what) const {
  const PickleValue& value = heap_[id];
  if (value.kind != PickleKind::tuple && value.kind != PickleKind::list) refuse("{} is no tuple", what);
  if (value.items.size() > most_pth_dimensions)
    refuse("{} has {} dimensions, at most {} are supported", what, value.items.size(), most_pth_dimensions);
  std::vector<int64_t> result;
  for (const PickleId item : value.items) result.push_back(static_cast<int64_t>(count(item, what)));
  return result;
}

/// OrderedDict() or, from Python 2, OrderedDict([[key, value], …]).
PickleId PthObjects::make_dict(PickleId arguments) {
  const PickleId dict = heap_.add({.kind = PickleKind::dict});
  const std::vector<PickleId>& given = items(arguments, 0, "the arguments of an OrderedDict");
  if (given.empty()) return dict;
  if (given.size() > 1 || heap_[given[0]].kind != PickleKind::list)
    refuse("an OrderedDict of something else than pairs");
  for (const PickleId pair : heap_[given[0]].items) {
    const PickleValue& value = heap_[pair];
    if ((value.kind != PickleKind::list && value.kind != PickleKind::tuple) || value.items.size() != 2)
      refuse("an OrderedDict of something else than pairs");
    for (const PickleId item : value.items) heap_.append(dict, item);
  }
  return dict;
}

/// Counter() or Counter({…}).
PickleId PthObjects::make_counter(PickleId arguments) {
  const std::vector<PickleId>& given = items(arguments, 0, "the arguments of a Counter");
  return !given.empty() && heap_[given[0]].kind == PickleKind::dict ? given[0] : heap_.add({.kind = PickleKind::dict});
}

/// A tensor with attributes, or of a class of its own: function, class, arguments, attributes.
PickleId PthObjects::make_subclass(PickleId arguments) {
  const std::vector<PickleId>& given = items(arguments, 4, "the arguments of a tensor");
  const PickleValue& function = heap_[given[0]];
  if (function.kind != PickleKind::symbol || !function.text.starts_with("torch._utils\n"))
    refuse("a tensor made by something else than PyTorch");
  return call(function.text, given[2]);
}

/// Arguments: storage, offset, sizes, strides; the others (requires_grad, hooks, metadata) are
/// ignored.
PickleId PthObjects::make_tensor(std::span<const PickleId> arguments, const PthElement* dtype) {
  if (heap_[arguments[0]].kind != PickleKind::storage) refuse("a tensor without a storage");
  if (tensors_.size() >= most_pth_tensors) refuse("more than {} tensors, no network has as many", most_pth_tensors);
  PthTensorRecord tensor{.view = views_[static_cast<size_t>(heap_[arguments[0]].integer)],
                         .sizes = counts(arguments[2], "the size of a tensor"),
                         .strides = counts(arguments[3], "the stride of a tensor"),
                         .offset = count(arguments[1], "the offset of a tensor")};
  if (dtype != nullptr) tensor.view.element = dtype;
  if (tensor.sizes.size() != tensor.strides.size())
    refuse("a tensor of {} sizes and {} strides", tensor.sizes.size(), tensor.strides.size());
  tensor.elements = 1;
  bool empty = false;
  for (const int64_t size : tensor.sizes) {
    empty = empty || size == 0;
    if (__builtin_mul_overflow(tensor.elements, static_cast<uint64_t>(std::max<int64_t>(size, 1)), &tensor.elements) ||
        tensor.elements > most_elements)
      refuse("a tensor of more elements than can be addressed");
  }
  if (empty) tensor.elements = 0;
  check_bounds(tensor);
  tensors_.push_back(std::move(tensor));
  return heap_.add({.kind = PickleKind::tensor, .integer = static_cast<int64_t>(tensors_.size() - 1)});
}

void PthObjects::check_bounds(const PthTensorRecord& tensor) const {
  if (tensor.elements == 0) return;
  uint64_t last = tensor.offset;
  bool fits = true;
  for (size_t k = 0; fits && k < tensor.sizes.size(); ++k) {
    uint64_t reach = 0;
    fits = !__builtin_mul_overflow(static_cast<uint64_t>(tensor.sizes[k] - 1), static_cast<uint64_t>(tensor.strides[k]),
                                   &reach) &&
           !__builtin_add_overflow(last, reach, &last);
  }
  if (!fits || last >= tensor.view.bytes / tensor.view.element->bytes)
    refuse("a tensor reaches beyond storage {} of {} bytes", in_quotes(storages_[tensor.view.storage].key),
           tensor.view.bytes);
}

PickleId PthObjects::make_parameter(PickleId arguments) {
  const std::vector<PickleId>& given = items(arguments, 0, "the arguments of a parameter");
  const PickleId parameter = heap_.add({.kind = PickleKind::parameter});
  if (!given.empty()) heap_.append(parameter, expect_tensor(given[0]));
  return parameter;
}

PickleId PthObjects::expect_tensor(PickleId id) const {
  if (heap_[id].kind != PickleKind::tensor) refuse("a parameter that is no tensor");
  return id;
}

}  // namespace nibblenet
