#include "engine/ranks/ranks.h"

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "engine/io/block_share.h"

namespace nibblenet {
namespace {

/// Letters between threads, by sender and receiver.
struct Mailboxes {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::pair<int, int>, std::deque<std::vector<std::byte>>> letters;
};

class RankInProcess final : public Ranks {
 public:
  RankInProcess(std::shared_ptr<Mailboxes> boxes, int rank, int size)
      : boxes_(std::move(boxes)), rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void exchange(std::span<const Sent> sent, std::span<const Received> received) override {
    std::unique_lock lock(boxes_->mutex);
    for (const Sent& letter : sent)
      boxes_->letters[{rank_, letter.to}].emplace_back(letter.bytes.begin(), letter.bytes.end());
    boxes_->changed.notify_all();
    for (const Received& room : received) {
      auto& box = boxes_->letters[{room.from, rank_}];
      boxes_->changed.wait(lock, [&] { return !box.empty(); });
      std::ranges::copy(box.front(), room.bytes.begin());
      box.pop_front();
    }
  }

  /// The last rank adds first: another order than that of blocks.
  void add_up(std::span<float> values) override {
    const std::vector<std::string> all = gather({reinterpret_cast<const char*>(values.data()), values.size_bytes()});
    std::vector<float> other(values.size());
    std::ranges::fill(values, 0.0F);
    for (auto bytes = all.rbegin(); bytes != all.rend(); ++bytes) {
      std::memcpy(other.data(), bytes->data(), bytes->size());
      for (size_t i = 0; i < values.size(); ++i) values[i] += other[i];
    }
  }

 private:
  std::shared_ptr<Mailboxes> boxes_;
  int rank_;
  int size_;
};

}  // namespace

std::vector<std::string> Ranks::gather(std::string_view mine) {
  const auto ranks = static_cast<size_t>(size());
  std::vector<std::string> all(ranks);
  std::vector<uint64_t> lengths(ranks, mine.size());
  const auto with_all = [&](auto bytes_to, auto bytes_from) {
    std::vector<Sent> sent;
    std::vector<Received> received;
    for (int other = 0; other < size(); ++other) {
      if (other == rank()) continue;
      sent.push_back({other, bytes_to()});
      received.push_back({other, bytes_from(static_cast<size_t>(other))});
    }
    exchange(sent, received);
  };
  const uint64_t length = mine.size();
  with_all([&] { return std::as_bytes(std::span(&length, 1)); },
           [&](size_t other) { return std::as_writable_bytes(std::span(&lengths[other], 1)); });
  for (size_t other = 0; other < ranks; ++other) all[other].resize(lengths[other]);
  all[static_cast<size_t>(rank())] = mine;
  with_all([&] { return std::as_bytes(std::span(mine)); },
           [&](size_t other) { return std::as_writable_bytes(std::span(all[other])); });
  return all;
}

void gather_rows(Ranks& ranks, TensorView<float> rows, int64_t batch, int64_t block) {
  if (ranks.size() == 1) return;
  const int64_t images = rows.size(0), width = rows.shape().inner_elements();
  std::vector<Ranks::Sent> sent;
  std::vector<Ranks::Received> received;
  for (int64_t begin = 0; begin < images; begin += batch) {
    const auto rows_of = [&](int rank) {
      const IndexRange own = BlockShare{block, rank, ranks.size()}.images(std::min(batch, images - begin));
      return std::as_writable_bytes(
          std::span(rows.data() + (begin + own.begin) * width, static_cast<size_t>(own.size() * width)));
    };
    for (int other = 0; other < ranks.size(); ++other) {
      if (other == ranks.rank()) continue;
      sent.push_back({other, rows_of(ranks.rank())});
      received.push_back({other, rows_of(other)});
    }
  }
  ranks.exchange(sent, received);
}

bool Ranks::any(bool mine) {
  return std::ranges::any_of(gather(mine ? "1" : "0"), [](const std::string& other) { return other == "1"; });
}

std::vector<std::unique_ptr<Ranks>> make_ranks_in_process(int size) {
  const auto boxes = std::make_shared<Mailboxes>();
  std::vector<std::unique_ptr<Ranks>> ranks;
  for (int rank = 0; rank < size; ++rank) ranks.push_back(std::make_unique<RankInProcess>(boxes, rank, size));
  return ranks;
}

}  // namespace nibblenet
