#include "training/parallel/workers.h"

namespace nibblenet {

Workers::Workers(int workers, int threads) : backends_(static_cast<size_t>(workers)) {
  for (int worker = 0; worker < workers; ++worker) threads_.emplace_back([this, worker] { live(worker); });
  on_each([&](int worker) { backends_[static_cast<size_t>(worker)] = std::make_unique<CpuBackend>(threads); });
}

Workers::~Workers() {
  on_each([this](int worker) { backends_[static_cast<size_t>(worker)].reset(); });
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

size_t Workers::peak_bytes() const {
  size_t bytes = 0;
  for (const auto& backend : backends_) bytes += backend->meter().peak_total();
  return bytes;
}

void Workers::run(IndexRange items, const std::function<void(int, int64_t)>& work) {
  {
    const std::lock_guard lock(mutex_);
    work_ = &work;
    items_ = items;
    each_ = false;
  }
  start_and_wait();
}

void Workers::on_each(const std::function<void(int)>& work) {
  const std::function<void(int, int64_t)> of_item = [&](int worker, int64_t) { work(worker); };
  {
    const std::lock_guard lock(mutex_);
    work_ = &of_item;
    items_ = {0, count()};
    each_ = true;
  }
  start_and_wait();
}

void Workers::start_and_wait() {
  std::unique_lock lock(mutex_);
  error_ = nullptr;
  busy_ = count();
  ++round_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return busy_ == 0; });
  if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Workers::live(int worker) {
  std::unique_lock lock(mutex_);
  for (int64_t round = 1;; ++round) {
    changed_.wait(lock, [&] { return stop_ || round_ >= round; });
    if (stop_) return;
    bool once = each_;
    while (each_ ? once : items_.begin < items_.end) {
      const int64_t item = each_ ? worker : items_.begin++;
      once = false;
      const auto& work = *work_;
      lock.unlock();
      std::exception_ptr error;
      try {
        work(worker, item);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error == nullptr) continue;
      if (error_ == nullptr || item < failed_item_) {
        error_ = error;
        failed_item_ = item;
      }
      items_.begin = items_.end;
    }
    if (--busy_ == 0) changed_.notify_all();
  }
}

}  // namespace nibblenet
