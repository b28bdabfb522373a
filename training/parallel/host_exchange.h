#pragma once

#include <string>
#include <vector>

#include "engine/ranks/ranks.h"
#include "kernels/backend.h"
#include "kernels/exchange.h"

namespace nibblenet {

/// An exchange by way of the host's memory, over any device: what is queued is done at once, in the
/// order of the backend's operations. Several ranks may share a device.
class HostExchange : public Exchange {
 public:
  /// Both must outlive it. Requires: the backend trains.
  HostExchange(Backend& backend, Ranks& ranks) : backend_(backend), ranks_(ranks) {}
  std::string name() const override { return "MPI, by way of host memory"; }
  void follow_backend() override {}
  void exchange(std::span<const Sent> sent, std::span<const Received> received) override;
  void add_up(std::span<float> values) override;
  void finish() override {}
  void add(TensorView<float> y, TensorView<const float> x) override { backend_.training().add(y, x); }
  void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw,
                SgdParameters parameters) override {
    backend_.training().sgd_step(w, v, dw, parameters);
  }

 private:
  Backend& backend_;
  Ranks& ranks_;
};

}  // namespace nibblenet
