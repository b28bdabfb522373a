#pragma once

#include <functional>
#include <string>

#include "engine/ranks/ranks.h"
#include "kernels/cuda/backend_cuda.h"
#include "kernels/exchange.h"
#include "kernels/nccl/library.h"

namespace nibblenet {

/// An exchange between GPUs through NCCL, on a stream of its own. Waits end where a rank is gone or
/// silent, or where NCCL reports an error, and no call of NCCL blocks: its communicator does not.
class NcclExchange final : public Exchange {
 public:
  /// Collective. Both must outlive it. Throws CudaError for errors of NCCL.
  NcclExchange(CudaBackend& backend, Ranks& ranks);
  /// Ends what is still under way. Other ranks may wait for it no longer.
  ~NcclExchange() override { abort(); }
  NcclExchange(const NcclExchange&) = delete;
  NcclExchange& operator=(const NcclExchange&) = delete;

  std::string name() const override { return "NCCL " + nccl().version(); }
  void follow_backend() override;
  void exchange(std::span<const Sent> sent, std::span<const Received> received) override;
  void add_up(std::span<float> values) override;
  void finish() override;
  void add(TensorView<float> y, TensorView<const float> x) override { cuda::add(y, x, stream_); }
  void sgd_step(TensorView<float> w, TensorView<float> v, TensorView<const float> dw,
                SgdParameters parameters) override {
    cuda::sgd_step(w, v, dw, parameters, stream_);
  }

 private:
  /// Polls until ready() is true.
  void wait_until(const std::function<bool()>& ready);
  /// Waits until a call that gave `result` is done, as those of such communicators may not be.
  void settle(ncclResult_t result, const char* what);
  /// Throws for a result that is an error.
  void check(ncclResult_t result, const char* what);
  /// Throws where a rank is gone or silent for `seconds`, once nothing waits for it any more.
  void expect_others(double seconds);
  /// Ends the communicator, and what it has under way in the stream: freeing memory waits for that.
  void abort();

  CudaBackend& backend_;
  Ranks& ranks_;
  Stream stream_;
  Event before_;  ///< in the backend's stream
  Event done_;    ///< in ours
  ncclComm_t communicator_ = nullptr;
};

}  // namespace nibblenet
