#include "engine/io/loader.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>

#include "engine/core/random.h"

namespace nibblenet {
namespace {

// Streams of random bits of the loader's own, far from the small numbers that layers and tensors
// use.
constexpr uint64_t shuffle_stream = 0x73687566'00000000ULL;  // "shuf"
constexpr uint64_t flip_stream = 0x666C6970'00000000ULL;     // "flip"
constexpr uint64_t shift_stream = 0x73686966'00000000ULL;    // "shif"
constexpr uint64_t cut_stream = 0x63757400'00000000ULL;      // "cut"

/// Colour of a hidden square: about the mean of natural images, which the network sees as 0.
constexpr std::array<uint8_t, 3> hidden_colour = {124, 116, 104};

size_t pixel_bytes(const Dataset::Image& image) {
  return static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3;
}

/// Processor time of the calling thread. Unlike the wall clock, it stands still while others
/// compute.
double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Hides the part of a square around (x, y) that lies in the image.
void hide_square(uint8_t* image, int width, int height, int x, int y) {
  const int side = std::min(width, height) / 2;
  const int left = std::max(0, x - side / 2), right = std::min(width, x - side / 2 + side);
  for (int row = std::max(0, y - side / 2); row < std::min(height, y - side / 2 + side); ++row)
    for (int column = left; column < right; ++column)
      std::ranges::copy(hidden_colour, image + (static_cast<size_t>(row) * static_cast<size_t>(width) + column) * 3);
}

/// target = image shifted right by dx and down by dy pixels, the gap filled with black. Requires:
/// |dx| < width.
void write_shifted(uint8_t* target, const uint8_t* image, int width, int height, int dx, int dy) {
  const auto row_bytes = static_cast<size_t>(width) * 3;
  const auto kept = static_cast<size_t>(width - std::abs(dx)) * 3;
  std::fill_n(target, row_bytes * static_cast<size_t>(height), uint8_t{0});
  for (int y = std::max(0, dy); y < std::min(height, height + dy); ++y)
    std::copy_n(image + static_cast<size_t>(y - dy) * row_bytes + static_cast<size_t>(std::max(0, -dx)) * 3, kept,
                target + static_cast<size_t>(y) * row_bytes + static_cast<size_t>(std::max(0, dx)) * 3);
}

}  // namespace

std::vector<int64_t> epoch_order(int64_t size, bool shuffle, uint64_t seed, int64_t epoch) {
  if (size < 0) fail<UsageError>("an epoch of {} images makes no sense", size);
  std::vector<int64_t> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (!shuffle) return order;
  Random random(seed, shuffle_stream + static_cast<uint64_t>(epoch));
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

/// Batch b lies in slot b % 2. The thread fills it once batch b - 2 has been given back, which is
/// when next() asks for batch b - 1. So the thread prepares a batch while the caller computes on
/// the one before.
struct Loader::State {
  struct Slot {
    Buffer<float> images;
    Buffer<uint8_t> pixels;
    Buffer<Augmentation> augmentations;
    Buffer<int32_t> labels;
    Buffer<int64_t> indices;
    int64_t size = 0;
  };

  State(const Dataset& data, const Preprocess& preprocess, const LoaderOptions& loader_options);
  void run();
  bool fill(Slot& slot, int64_t batch);
  void prepare_image(Slot& slot, int64_t position, int64_t index);
  Augmentation augmentation(const Dataset::Image& image, uint64_t index) const;
  const uint8_t* with_square_hidden(const Dataset::Image& image, uint64_t index, const uint8_t* pixels);

  const Dataset& dataset;
  const LoaderOptions options;
  const int64_t crop;
  Preprocessor preprocessor;
  std::vector<int64_t> order;
  std::vector<uint8_t> cut;    // an image with a part hidden
  std::vector<uint8_t> moved;  // an image that was shifted
  int64_t batches = 0;
  std::array<Slot, 2> slots;

  std::mutex mutex;  // guards filled, given_back, error
  std::condition_variable changed;
  int64_t filled = 0;      // batches before this one are, or were, ready
  int64_t given_back = 0;  // the caller is done with batches before this one
  std::exception_ptr error;
  std::atomic<bool> stop = false;
  std::atomic<double> prepare_seconds = 0;
  int64_t upcoming = 0;     // the batch that next() gives out; only the calling thread's
  double wait_seconds = 0;  // likewise
  std::thread thread;
};

Loader::State::State(const Dataset& data, const Preprocess& preprocess, const LoaderOptions& loader_options)
    : dataset(data), options(loader_options), crop(preprocess.crop), preprocessor(preprocess) {
  if (options.batch_size < 1)
    fail<UsageError>("a batch size of {} is not supported; use 1 or more", options.batch_size);
  if (data.labels.size() != data.images.size())
    fail<ShapeError>("a data set of {} images has {} labels", data.images.size(), data.labels.size());
  batches = data.size() / options.batch_size + (data.size() % options.batch_size != 0 ? 1 : 0);
  if (options.first_batch < 0 || options.first_batch > batches)
    fail<UsageError>("cannot start at batch {} of an epoch of {}", options.first_batch, batches);
  filled = given_back = upcoming = options.first_batch;
  order = epoch_order(data.size(), options.shuffle, options.seed, options.epoch);
  const auto most = static_cast<size_t>(std::min(options.batch_size, data.size()));
  for (Slot& slot : slots) {
    if (options.raw && data.size() > 0) {
      slot.pixels = {host_memory(), most * pixel_bytes(data.images[0]), MemoryCategory::data};
      slot.augmentations = {host_memory(), most, MemoryCategory::data};
    } else {
      slot.images = {host_memory(), most * static_cast<size_t>(crop * crop * 3), MemoryCategory::data};
    }
    slot.labels = {host_memory(), most, MemoryCategory::data};
    slot.indices = {host_memory(), most, MemoryCategory::data};
  }
}

void Loader::State::run() {
  try {
    for (int64_t batch = options.first_batch; batch < batches; ++batch) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return stop || batch < given_back + 2; });
      }
      if (!fill(slots[static_cast<size_t>(batch % 2)], batch)) return;
      {
        const std::lock_guard lock(mutex);
        filled = batch + 1;
      }
      changed.notify_all();
    }
  } catch (...) {
    {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
    changed.notify_all();
  }
}

/// Prepares a batch. Returns false when told to stop.
bool Loader::State::fill(Slot& slot, int64_t batch) {
  const int64_t begin = batch * options.batch_size;
  slot.size = std::min(options.batch_size, dataset.size() - begin);
  for (int64_t position = 0; position < slot.size; ++position) {
    if (stop) return false;
    const double before = thread_seconds();
    prepare_image(slot, position, order[static_cast<size_t>(begin + position)]);
    prepare_seconds = prepare_seconds + (thread_seconds() - before);
  }
  return true;
}

void Loader::State::prepare_image(Slot& slot, int64_t position, int64_t index) {
  const auto image_index = static_cast<size_t>(index);
  const auto at = static_cast<size_t>(position);
  const Dataset::Image& image = dataset.images[image_index];
  const size_t bytes = pixel_bytes(image);
  if (image.width < 1 || image.height < 1 || image.offset > dataset.pixels.size() ||
      bytes > dataset.pixels.size() - image.offset)
    fail<ShapeError>("image {} of the data set ({} x {} at byte {}) lies outside its {} bytes of pixels", index,
                     image.width, image.height, image.offset, dataset.pixels.size());
  const uint8_t* pixels = with_square_hidden(image, image_index, dataset.pixels.data() + image.offset);
  const Augmentation change = augmentation(image, image_index);
  if (options.raw) {
    if (image.width != dataset.images[0].width || image.height != dataset.images[0].height)
      fail<ShapeError>("image {} is {} x {}, image 0 is {} x {}: raw batches need one size", index, image.width,
                       image.height, dataset.images[0].width, dataset.images[0].height);
    std::copy_n(pixels, bytes, slot.pixels.data() + at * bytes);
    slot.augmentations.data()[at] = change;
  } else {
    if (change.right != 0 || change.down != 0) {
      moved.resize(bytes);
      write_shifted(moved.data(), pixels, image.width, image.height, change.right, change.down);
      pixels = moved.data();
    }
    preprocessor.run(pixels, image.width, image.height, change.mirrored != 0,
                     slot.images.data() + at * static_cast<size_t>(crop * crop * 3));
  }
  slot.labels.data()[at] = dataset.labels[image_index];
  slot.indices.data()[at] = index;
}

/// Draws the flip and shift of an image.
Augmentation Loader::State::augmentation(const Dataset::Image& image, uint64_t index) const {
  const auto epoch = static_cast<uint64_t>(options.epoch);
  Augmentation result;
  if (options.flip) result.mirrored = static_cast<int32_t>(random_bits(options.seed, flip_stream + epoch, index) & 1);
  const int reach = options.shift ? std::min(image.width, image.height) / 8 : 0;
  if (reach == 0) return result;
  Random random(random_bits(options.seed, shift_stream + epoch, index));
  const auto drawn = [&] { return static_cast<int>(random.below(static_cast<uint64_t>(2 * reach + 1))) - reach; };
  result.right = drawn();
  result.down = drawn();
  return result;
}

/// The pixels of an image; with options.cut a copy in `cut`, a random square of which is hidden.
const uint8_t* Loader::State::with_square_hidden(const Dataset::Image& image, uint64_t index, const uint8_t* pixels) {
  if (!options.cut) return pixels;
  cut.assign(pixels, pixels + pixel_bytes(image));
  Random random(random_bits(options.seed, cut_stream + static_cast<uint64_t>(options.epoch), index));
  const auto x = static_cast<int>(random.below(static_cast<uint64_t>(image.width)));
  const auto y = static_cast<int>(random.below(static_cast<uint64_t>(image.height)));
  hide_square(cut.data(), image.width, image.height, x, y);
  return cut.data();
}

Loader::Loader(const Dataset& dataset, const Preprocess& preprocess, const LoaderOptions& options)
    : state_(std::make_unique<State>(dataset, preprocess, options)) {
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(state_->mutex);  // else the thread could miss `stop` between its check and its sleep
    state_->stop = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

int64_t Loader::batches() const { return state_->batches; }

bool Loader::next(Batch& batch) {
  State& state = *state_;
  if (state.upcoming == state.batches) return false;
  const auto before = std::chrono::steady_clock::now();
  {
    std::unique_lock lock(state.mutex);
    state.given_back = state.upcoming;
    state.changed.notify_all();
    state.changed.wait(lock, [&state] { return state.filled > state.upcoming || state.error != nullptr; });
    // Batches before the error come first, so that what the caller gets does not depend on timing.
    if (state.filled <= state.upcoming) std::rethrow_exception(state.error);
  }
  state.wait_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
  const State::Slot& slot = state.slots[static_cast<size_t>(state.upcoming % 2)];
  const auto size = static_cast<size_t>(slot.size);
  batch = {};
  if (state.options.raw) {
    const Dataset::Image& first = state.dataset.images[0];
    batch.pixels = {slot.pixels.data(), {slot.size, first.height, first.width, 3}};
    batch.augmentations = {slot.augmentations.data(), size};
  } else {
    batch.images = {slot.images.data(), {slot.size, state.crop, state.crop, 3}};
  }
  batch.labels = {slot.labels.data(), size};
  batch.indices = {slot.indices.data(), size};
  ++state.upcoming;
  return true;
}

double Loader::prepare_seconds() const { return state_->prepare_seconds; }
double Loader::wait_seconds() const { return state_->wait_seconds; }

}  // namespace nibblenet
