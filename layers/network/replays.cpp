#include "layers/network/replays.h"

#include <algorithm>

namespace nibblenet {

Replays::Entry* Replays::find(ConstActivations x) {
  const auto found = std::ranges::find_if(entries_, [&](const Entry& entry) {
    return entry.x.data() == x.data() && entry.x.shape() == x.shape() && entry.x.precision() == x.precision();
  });
  return found == entries_.end() ? nullptr : &*found;
}

ConstActivations Replays::run(Recorder& backend, ConstActivations x, const Work& work) {
  Entry* entry = find(x);
  if (entry == nullptr) {
    const ConstActivations result = work(x);
    if (entries_.size() == most) entries_.erase(entries_.begin());
    entries_.push_back({x, result, nullptr});
    return result;
  }
  if (!entry->recording || !entry->recording->current()) {
    entry->recording = nullptr;
    entry->recording = backend.record([&] { entry->result = work(x); });
  }
  if (!entry->recording) return work(x);  // this backend does not record
  entry->recording->replay();
  return entry->result;
}

std::optional<int64_t> Replays::operations() const {
  if (entries_.empty() || !entries_.back().recording) return std::nullopt;
  return entries_.back().recording->operations();
}

}  // namespace nibblenet
