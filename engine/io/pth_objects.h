#pragma once

#include <map>

#include "engine/io/pickle.h"
#include "engine/io/pth_element.h"

namespace nibblenet {

/// The bytes of one or several tensors.
struct PthStorage {
  std::string_view key;             ///< its name in the pickle
  uint64_t bytes = 0;               ///< its size as the pickle says
  std::span<const uint8_t> data{};  ///< the bytes, once they have been found
};

/// Part of a storage as elements of one type, which hold a tensor.
struct PthStorageView {
  size_t storage = 0;  ///< place in PthObjects::storages()
  const PthElement* element = nullptr;
  uint64_t begin = 0;  ///< bytes
  uint64_t bytes = 0;
};

/// A tensor as its pickle describes it; element (i0, i1, …) lies at offset + Σ i_k · strides[k] in
/// its view. Checked: sizes and strides are not negative, and every element lies inside.
struct PthTensorRecord {
  PthStorageView view;
  std::vector<int64_t> sizes;    ///< at most 8
  std::vector<int64_t> strides;  ///< elements
  uint64_t offset = 0;           ///< elements
  uint64_t elements = 0;
};

/// The actions of torch.save's pickles: they make dicts, tensors and parameters, over storages that
/// persistent ids name. Any other global makes an object that holds nothing but its name. A global
/// that runs programs is refused. Nothing is ever run.
class PthObjects final : public PickleActions {
 public:
  PthObjects(PickleHeap& heap, std::string file) : heap_(heap), file_(std::move(file)) {}

  PickleId call(std::string_view symbol, PickleId arguments) override;
  void build(PickleId object, PickleId state) override;
  PickleId load(PickleId persistent_id) override;

  std::vector<PthStorage>& storages() { return storages_; }
  const std::vector<PthStorage>& storages() const { return storages_; }
  /// The place in storages() of the one with this key. Throws FormatError when there is none.
  size_t storage_of(std::string_view key) const;
  /// "'my.net.Net'" of an object of that class.
  std::string class_of(PickleId object) const;
  /// The tensor that a value stands for, itself or as a parameter; nullptr for any other value.
  const PthTensorRecord* tensor(PickleId id) const;
  /// The element type of a storage: that of its first view in the pickle.
  const PthElement& element_of(size_t storage) const { return *elements_[storage]; }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail<FormatError>("{}: broken state dict: {}; fetch or write the file again", file_,
                      fmt::format(format, std::forward<Args>(args)...));
  }
  const std::vector<PickleId>& items(PickleId tuple, size_t least, std::string_view what) const;
  uint64_t count(PickleId id, std::string_view what) const;
  std::string_view text(PickleId id, std::string_view what) const;
  std::vector<int64_t> counts(PickleId id, std::string_view what) const;

  PickleId make_dict(PickleId arguments);
  PickleId make_counter(PickleId arguments);
  PickleId make_subclass(PickleId arguments);
  PickleId make_tensor(std::span<const PickleId> arguments, const PthElement* dtype);
  PickleId make_parameter(PickleId arguments);
  PickleId expect_tensor(PickleId id) const;
  void check_bounds(const PthTensorRecord& tensor) const;

  PickleHeap& heap_;
  std::string file_;
  std::vector<PthStorage> storages_;
  std::vector<const PthElement*> elements_;  ///< of each storage
  std::map<std::string_view, size_t> keys_;
  std::vector<PthStorageView> views_;
  std::vector<PthTensorRecord> tensors_;
};

/// "torch._utils._rebuild_tensor_v2" of "torch._utils\n_rebuild_tensor_v2", in quotes.
std::string symbol_name(std::string_view symbol);

}  // namespace nibblenet
