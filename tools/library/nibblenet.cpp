#include "tools/library/nibblenet.h"

#include <omp.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <exception>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

#include "engine/core/parallel.h"
#include "engine/io/image.h"
#include "layers/network/canonical.h"
#include "layers/network/class_names.h"
#include "layers/network/evaluate.h"
#include "layers/network/guesses.h"
#include "layers/network/image_batch.h"
#include "layers/network/pass.h"
#include "layers/network/precision_choice.h"

namespace nibblenet {
namespace library {

/// The thread that does all of a model's work. oneDNN wants a primitive to run on the thread that
/// made it, and its kernels move the stack pointer. So all signals are blocked here, and on the
/// threads of the team that OpenMP starts from here. The caller's own settings of OpenMP stay.
class Worker {
 public:
  Worker() {
    sigset_t mask, before;
    sigfillset(&mask);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT}) sigdelset(&mask, fault);
    pthread_sigmask(SIG_BLOCK, &mask, &before);
    try {
      thread_ = std::thread([this] { serve(); });
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~Worker() {
    add({});
    thread_.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Does `work` there, after what other threads asked for, and waits. Throws what it throws.
  template <class Work>
  auto run(Work work) {
    if (std::this_thread::get_id() == thread_.get_id())
      throw Error("a progress function cannot use the model that calls it");
    const auto task = std::make_shared<std::packaged_task<decltype(work())()>>(work);
    auto result = task->get_future();
    add([task] { (*task)(); });
    return result.get();
  }

 private:
  /// An empty job ends the thread.
  void add(std::function<void()> job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    changed_.notify_one();
  }
  void serve() {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !jobs_.empty(); });
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      if (!job) return;
      job();
    }
  }

  std::mutex mutex_;  ///< guards the jobs
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  std::thread thread_;
};

}  // namespace library

namespace {

#define NIBBLENET_TEXT_OF(value) #value
#define NIBBLENET_VERSION_OF(major, minor, patch) \
  NIBBLENET_TEXT_OF(major) "." NIBBLENET_TEXT_OF(minor) "." NIBBLENET_TEXT_OF(patch)
constexpr std::string_view header_version =
    NIBBLENET_VERSION_OF(NIBBLENET_VERSION_MAJOR, NIBBLENET_VERSION_MINOR, NIBBLENET_VERSION_PATCH);
static_assert(header_version == NIBBLENET_PROJECT_VERSION, "nibblenet.h has another version than CMakeLists.txt");

/// Threads do not come along into a forked child, which would wait for them for ever.
void expect_usable_process() {
  static const pid_t first = getpid();
  if (getpid() != first)
    throw Error("nibblenet does not work in a process that was forked after its use: fork earlier, or start a program");
}

std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = c == '\n' || c == '\r' ? ' ' : '?';
  return text;
}

/// Runs a public function's `work`. Every error becomes one of a kind that a program knows without
/// our headers.
template <class Work>
auto run_call(Work work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("out of memory");
  } catch (const std::exception& error) {
    throw std::runtime_error(one_line(error.what()));
  }
}

/// As many images as fill 20 MB, but 1 to 32.
int64_t largest_batch(int size) { return std::clamp<int64_t>(5'000'000 / (int64_t{size} * size * 3), 1, 32); }

void expect_picture(const uint8_t* rgb, int64_t height, int64_t width) {
  constexpr int64_t longest = 1 << 20;
  if (height < 1 || width < 1 || height > longest || width > longest || height * width > max_image_pixels)
    fail<UsageError>("an image of {} x {} pixels; supported: 1 to {} a side, {} in all", width, height, longest,
                     max_image_pixels);
  if (rgb == nullptr) throw UsageError("no image: the pointer to its pixels is null");
}

LayerSize layer_size(const SizeRow& row) {
  return {.layer = row.name,
          .scheme = row.scheme,
          .weights = row.weights,
          .bits_per_weight = row.bits_per_weight(),
          .estimated = row.estimated.total(),
          .file = row.file,
          .resident = row.resident.total()};
}

}  // namespace

/// What a model's thread computes with.
struct Model::Computer {
  /// A pass, and room for its images.
  struct Runner {
    Pass pass;
    ImageBatch images;
    int64_t most;  ///< images at a time
  };

  Computer(const std::string& file, const std::string& device_name, int thread_count,
           const std::string& asked_precision) {
    if (thread_count < 0 || thread_count > 1024)
      fail<UsageError>("{} threads; supported: 1 to 1024, or 0 for as many as there are", thread_count);
    StateDict dict = load_state_dict(file);
    notes = dict.warnings;
    for (const std::string& note : dict.notes) notes.push_back(file + ": " + note);
    std::ranges::move(make_canonical(dict, file), std::back_inserter(notes));
    std::ranges::transform(notes, notes.begin(), one_line);
    preprocess = Preprocess::for_image_size(image_size_of(dict));
    metadata = dict.metadata;
    classes = class_names(dict.metadata, class_count(dict));
    backend = make_backend(device_name, thread_count);
    threads = omp_get_max_threads();
    const PrecisionChoice choice = choose_precision(asked_precision, *backend, dict);
    network.emplace(*backend, std::move(dict), choice.precision);
    expect_demanded(choice, *network);
    std::ranges::move(precision_lines(choice, *network), std::back_inserter(notes));
  }

  /// The pass for batches of `images`, or its largest batch.
  Runner& runner_for(int64_t images) {
    const int64_t most = std::min(images, largest_batch(preprocess.crop));
    if (!runner || runner->most < most) {
      runner.reset();
      const Shape shape{most, preprocess.crop, preprocess.crop, 3};
      runner.emplace(Runner{{*network, 0, network->layers().size(), shape, Pass::Mode::inference},
                            {*backend, preprocess, most, network->storage(), std::nullopt},
                            most});
    }
    return *runner;
  }

  std::vector<float> logits(const uint8_t* rgb, int64_t images, int64_t height, int64_t width) {
    if (images < 0) fail<UsageError>("{} images; supported: 0 or more", images);
    if (images == 0) return {};
    expect_picture(rgb, height, width);
    const auto columns = static_cast<size_t>(network->classes());
    constexpr int64_t most_bytes = int64_t{1} << 40;
    if (images > most_bytes / std::max(height * width * 3, network->classes() * 4))
      fail<UsageError>("{} images of {} x {} pixels are more than memory can hold", images, width, height);
    std::vector<float> result(static_cast<size_t>(images) * columns);
    Runner& run = runner_for(images);
    for (int64_t first = 0; first < images; first += run.most) {
      const int64_t count = std::min(run.most, images - first);
      const TensorView<float> prepared = run.images.host_images().slice(0, count);
      const auto workers = static_cast<unsigned>(std::min<int64_t>(threads, count));
      parallel_for(workers, workers, 1, [&](size_t worker) {
        Preprocessor preprocessor(preprocess);
        for (auto i = static_cast<int64_t>(worker); i < count; i += workers)
          preprocessor.run(rgb + (first + i) * height * width * 3, static_cast<int>(width), static_cast<int>(height),
                           false, prepared.slice(i, 1).data());
      });
      const TensorView<const float> output = run.pass.forward(run.images.upload(TensorView<const float>(prepared)));
      backend->copy_to_host(result.data() + static_cast<size_t>(first) * columns, output.data(),
                            output.span().size_bytes());
    }
    return result;
  }

  std::vector<Prediction> classify(const uint8_t* rgb, int64_t height, int64_t width, int64_t top) {
    if (top < 1) fail<UsageError>("the likeliest {} classes; supported: 1 or more", top);
    std::vector<Prediction> predictions;
    for (const Guess& guess : best_guesses(logits(rgb, 1, height, width), top))
      predictions.push_back(
          {.label = guess.label, .name = classes[static_cast<size_t>(guess.label)], .probability = guess.probability});
    return predictions;
  }

  Score evaluate(const std::string& path, int64_t limit, const OnProgress& progress) {
    Dataset images = load_dataset(path, Split::test, limit);
    if (images.size() == 0) throw UsageError("there are no images to evaluate");
    const std::string note = match_classes(images, metadata, network->classes(), true);
    const Evaluation result = nibblenet::evaluate(*network, images, preprocess, 128, progress);
    const auto values = result.logits.view().span();
    if (!std::ranges::all_of(values, [](float logit) { return std::isfinite(logit); }))
      throw Error("the network's output is not finite");
    return {.images = result.images,
            .correct = result.correct,
            .loss = result.loss,
            .data = images.description,
            .note = one_line(note)};
  }

  std::vector<std::string> notes;
  Preprocess preprocess;
  std::map<std::string, std::string> metadata;
  std::vector<std::string> classes;
  std::unique_ptr<Backend> backend;
  int threads = 0;  ///< of OpenMP's teams
  std::optional<Network> network;
  std::optional<Runner> runner;  ///< from the first image on
};

/// All that a model owns. The worker makes, uses and frees the computer.
struct Model::Parts {
  Parts(const std::string& file, const std::string& device, int threads, const std::string& precision) {
    worker.run([&] { computer = std::make_unique<Computer>(file, device, threads, precision); });
  }
  ~Parts() {
    worker.run([&] { computer.reset(); });
  }
  Parts(const Parts&) = delete;
  Parts& operator=(const Parts&) = delete;

  /// The computer of a model that was not moved from, for what no call changes.
  static Computer& constant(const std::unique_ptr<Parts>& parts) {
    if (!parts) throw std::runtime_error("the model was moved from: it is empty");
    return *parts->computer;
  }
  /// Runs a function that computes.
  template <class Work>
  static auto run(const std::unique_ptr<Parts>& parts, Work work) {
    return run_call([&] {
      Computer& computer = constant(parts);
      expect_usable_process();
      return parts->worker.run([&] { return work(computer); });
    });
  }

  const pid_t process = getpid();
  library::Worker worker;
  std::unique_ptr<Computer> computer;
};

std::string library_version() { return std::string(header_version); }

Model::Model(const std::string& file, const std::string& device, int threads, const std::string& precision)
    : parts_(run_call([&] {
        expect_usable_process();
        return std::make_unique<Parts>(file, device, threads, precision);
      })) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&& other) noexcept {
  if (this != &other) {
    const Model old(std::move(*this));
    parts_ = std::move(other.parts_);
  }
  return *this;
}
Model::~Model() {
  if (parts_ && parts_->process != getpid()) static_cast<void>(parts_.release());  // its thread is not here to end
}

std::string Model::network() const { return std::string(Parts::constant(parts_).network->spec().title); }
std::string Model::device() const { return Parts::constant(parts_).backend->description(); }
std::string Model::precision() const { return std::string(to_string(Parts::constant(parts_).network->precision())); }
int Model::image_size() const { return Parts::constant(parts_).preprocess.crop; }
std::vector<std::string> Model::classes() const { return Parts::constant(parts_).classes; }
std::vector<std::string> Model::notes() const { return Parts::constant(parts_).notes; }

std::vector<float> Model::logits(const uint8_t* rgb, int64_t images, int64_t height, int64_t width) {
  return Parts::run(parts_, [&](Computer& computer) { return computer.logits(rgb, images, height, width); });
}

std::vector<Prediction> Model::classify(const uint8_t* rgb, int64_t height, int64_t width, int64_t top) {
  return Parts::run(parts_, [&](Computer& computer) { return computer.classify(rgb, height, width, top); });
}

std::vector<Prediction> Model::classify(const std::string& image_file, int64_t top) {
  return Parts::run(parts_, [&](Computer& computer) {
    const RgbImage image = read_image(image_file);
    return computer.classify(image.pixels.data(), image.height, image.width, top);
  });
}

Score Model::evaluate(const std::string& data, int64_t limit, const OnProgress& progress) {
  std::exception_ptr thrown;  // by `progress`
  const auto report = [&](int64_t done, int64_t total) {
    try {
      return progress && progress(done, total);
    } catch (...) {
      thrown = std::current_exception();
      return true;
    }
  };
  try {
    return Parts::run(parts_, [&](Computer& computer) { return computer.evaluate(data, limit, report); });
  } catch (const std::runtime_error&) {
    if (thrown) std::rethrow_exception(thrown);
    throw;
  }
}

Ledger Model::ledger() const {
  const Network& network = *Parts::constant(parts_).network;
  Ledger ledger{.layers = {}, .total = {}, .file_bytes = network.file_bytes()};
  const std::vector<SizeRow> rows = network.ledger();
  for (const SizeRow& row : rows) ledger.layers.push_back(layer_size(row));
  ledger.total = layer_size(sum(rows, "total"));
  return ledger;
}

}  // namespace nibblenet
