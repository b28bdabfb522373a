#include "training/parallel/host_exchange.h"

#include "training/host_copies.h"

namespace nibblenet {

void HostExchange::exchange(std::span<const Sent> sent, std::span<const Received> received) {
  std::vector<std::vector<float>> leaving, arriving;  // stay until the messages have moved
  std::vector<Ranks::Sent> messages;
  std::vector<Ranks::Received> rooms;
  HostCopies copies(backend_);
  auto to_self = received.begin();
  for (const Sent& message : sent) {
    if (message.to == ranks_.rank()) {
      while (to_self->from != ranks_.rank()) ++to_self;
      const Shape shape{static_cast<int64_t>(message.values.size())};
      backend_.convert(TensorView<float>((to_self++)->values.data(), shape),
                       TensorView<const float>(message.values.data(), shape));
      continue;
    }
    copies.queue(leaving.emplace_back(message.values.size()), message.values.data());
    messages.push_back({message.to, std::as_bytes(std::span(leaving.back()))});
  }
  for (const Received& room : received)
    if (room.from != ranks_.rank())
      rooms.push_back({room.from, std::as_writable_bytes(std::span(arriving.emplace_back(room.values.size())))});
  copies.finish();
  ranks_.exchange(messages, rooms);
  auto next = arriving.begin();
  for (const Received& room : received)
    if (room.from != ranks_.rank())
      backend_.copy_from_host(room.values.data(), (next++)->data(), room.values.size_bytes());
}

void HostExchange::add_up(std::span<float> values) {
  std::vector<float> all = backend_.to_host({values.data(), {static_cast<int64_t>(values.size())}});
  ranks_.add_up(all);
  backend_.copy_from_host(values.data(), all.data(), values.size_bytes());
}

}  // namespace nibblenet
