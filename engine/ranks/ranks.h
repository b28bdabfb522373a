#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/tensor.h"

namespace nibblenet {

/// The processes that work on one thing together, each known by its rank of [0, size). Every
/// function but rank() and size() is collective: all ranks call it, in the same order. Throws Error
/// where a rank is gone or silent.
class Ranks {
 public:
  virtual ~Ranks() = default;
  /// This process's rank, and the number of ranks.
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Bytes for another rank.
  struct Sent {
    int to;
    std::span<const std::byte> bytes;
  };
  /// Room for the bytes of another rank.
  struct Received {
    int from;
    std::span<std::byte> bytes;
  };
  /// Sends and receives at once, and waits for all of it. Between two ranks, messages arrive in the
  /// order in which they were sent. A message's two sides name the same length.
  virtual void exchange(std::span<const Sent> sent, std::span<const Received> received) = 0;

  /// Adds up the values of all ranks, in place on each. The order of the sums is not promised.
  virtual void add_up(std::span<float> values) = 0;

  /// For who waits for other ranks by other means, and has done so for `seconds`: called again and
  /// again, throws Error where a rank is gone or silent. Not collective.
  virtual void expect_present(double /*seconds*/) {}

  /// What every rank gave, by rank.
  std::vector<std::string> gather(std::string_view mine);
  /// Whether a rank gave true.
  bool any(bool mine);
  /// Waits for all ranks.
  void barrier() { gather(""); }
};

/// The only process there is.
class OneRank final : public Ranks {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void exchange(std::span<const Sent>, std::span<const Received>) override {}
  void add_up(std::span<float>) override {}
};

/// Brings rows to all ranks. `rows` holds, of every `batch` rows, those of this rank's blocks
/// (BlockShare), and gets those of the others.
void gather_rows(Ranks& ranks, TensorView<float> rows, int64_t batch, int64_t block);

/// Ranks inside one process, one for a thread each: for tests.
std::vector<std::unique_ptr<Ranks>> make_ranks_in_process(int size);

}  // namespace nibblenet
