#include "engine/io/loader.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <ctime>
#include <numeric>

#include "engine/core/random.h"
#include "engine/core/stopwatch.h"

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

Loader::Loader(const Dataset& dataset, const Preprocess& preprocess, const LoaderOptions& options)
    : dataset_(dataset), options_(options), crop_(preprocess.crop), preprocessor_(preprocess) {
  if (options_.batch_size < 1)
    fail<UsageError>("a batch size of {} is not supported; use 1 or more", options_.batch_size);
  if (dataset.labels.size() != dataset.images.size())
    fail<ShapeError>("a data set of {} images has {} labels", dataset.images.size(), dataset.labels.size());
  batches_ = dataset.size() / options_.batch_size + (dataset.size() % options_.batch_size != 0 ? 1 : 0);
  if (options_.first_batch < 0 || options_.first_batch > batches_)
    fail<UsageError>("cannot start at batch {} of an epoch of {}", options_.first_batch, batches_);
  filled_ = given_back_ = upcoming_ = options_.first_batch;
  order_ = epoch_order(dataset.size(), options_.shuffle, options_.seed, options_.epoch);
  const auto most = static_cast<size_t>(std::min(options_.batch_size, dataset.size()));
  for (Slot& slot : slots_) {
    if (options_.raw && dataset.size() > 0) {
      slot.pixels = {host_memory(), most * pixel_bytes(dataset.images[0]), MemoryCategory::data};
      slot.augmentations = {host_memory(), most, MemoryCategory::data};
    } else {
      slot.images = {host_memory(), most * static_cast<size_t>(crop_ * crop_ * 3), MemoryCategory::data};
    }
    slot.labels = {host_memory(), most, MemoryCategory::data};
    slot.indices = {host_memory(), most, MemoryCategory::data};
    if (!options_.mixing.enabled()) continue;
    slot.partners = {host_memory(), most, MemoryCategory::data};
    slot.shares = {host_memory(), most, MemoryCategory::data};
  }
  thread_ = std::thread([this] { run(); });
}

void Loader::run() {
  try {
    for (int64_t batch = options_.first_batch; batch < batches_; ++batch) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || batch < given_back_ + 2; });
      }
      if (!fill(slots_[static_cast<size_t>(batch % 2)], batch)) return;
      {
        const std::lock_guard lock(mutex_);
        filled_ = batch + 1;
      }
      changed_.notify_all();
    }
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
    changed_.notify_all();
  }
}

/// Prepares a batch. Returns false when told to stop.
bool Loader::fill(Slot& slot, int64_t batch) {
  const int64_t begin = batch * options_.batch_size;
  const IndexRange share = options_.share.images(std::min(options_.batch_size, dataset_.size() - begin));
  slot.size = share.size();
  for (int64_t position = 0; position < slot.size; ++position) {
    if (stop_) return false;
    const double before = thread_seconds();
    prepare_image(slot, position, order_[static_cast<size_t>(begin + share.begin + position)]);
    prepare_seconds_ = prepare_seconds_ + (thread_seconds() - before);
  }
  return true;
}

const Dataset::Image& Loader::checked_image(int64_t index) const {
  const Dataset::Image& image = dataset_.images[static_cast<size_t>(index)];
  if (image.width < 1 || image.height < 1 || image.offset > dataset_.pixels.size() ||
      pixel_bytes(image) > dataset_.pixels.size() - image.offset)
    fail<ShapeError>("image {} of the data set ({} x {} at byte {}) lies outside its {} bytes of pixels", index,
                     image.width, image.height, image.offset, dataset_.pixels.size());
  return image;
}

void Loader::prepare_image(Slot& slot, int64_t position, int64_t index) {
  const auto image_index = static_cast<size_t>(index);
  const auto at = static_cast<size_t>(position);
  const Dataset::Image& image = checked_image(index);
  const size_t bytes = pixel_bytes(image);
  const uint8_t* pixels = nullptr;
  Augmentation change;
  if (options_.mixing.enabled()) {
    pixels = mixed(slot, at, index);
  } else {
    pixels = with_square_hidden(image, image_index, dataset_.pixels.data() + image.offset);
    change = augmentation(image, image_index);
  }
  if (options_.mirror) {
    if (pixels != moved_.data()) moved_.assign(pixels, pixels + bytes);
    mirror_pixels(moved_, image.width);
    pixels = moved_.data();
  }
  if (options_.raw) {
    if (image.width != dataset_.images[0].width || image.height != dataset_.images[0].height)
      fail<ShapeError>("image {} is {} x {}, image 0 is {} x {}: raw batches need one size", index, image.width,
                       image.height, dataset_.images[0].width, dataset_.images[0].height);
    std::copy_n(pixels, bytes, slot.pixels.data() + at * bytes);
    slot.augmentations.data()[at] = change;
  } else {
    if (change.right != 0 || change.down != 0) {
      shifted_.resize(bytes);
      write_shifted(shifted_.data(), pixels, image.width, image.height, change.right, change.down);
      pixels = shifted_.data();
    }
    preprocessor_.run(pixels, image.width, image.height, change.mirrored != 0,
                      slot.images.data() + at * static_cast<size_t>(crop_ * crop_ * 3));
  }
  slot.labels.data()[at] = dataset_.labels[image_index];
  slot.indices.data()[at] = index;
}

/// An image as this epoch augments it.
void Loader::write_augmented(std::vector<uint8_t>& target, int64_t index) {
  const Dataset::Image& image = checked_image(index);
  const auto image_index = static_cast<uint64_t>(index);
  const uint8_t* pixels = with_square_hidden(image, image_index, dataset_.pixels.data() + image.offset);
  const Augmentation change = augmentation(image, image_index);
  target.resize(pixel_bytes(image));
  write_shifted(target.data(), pixels, image.width, image.height, change.right, change.down);
  if (change.mirrored != 0) mirror_pixels(target, image.width);
}

/// The pixels of an image and its partner, both augmented, mixed in `moved_`.
const uint8_t* Loader::mixed(Slot& slot, size_t at, int64_t index) {
  const Dataset::Image& image = checked_image(index);
  const ImageMix mix = draw_mix(options_.mixing, dataset_.size(), image.width, image.height, options_.seed,
                                options_.epoch, static_cast<uint64_t>(index));
  const Dataset::Image& partner = checked_image(mix.partner);
  if (partner.width != image.width || partner.height != image.height)
    fail<UsageError>(
        "--mixup and --cutmix need images of one size: image {} is {} x {}, image {} is {} x {}; resize them first, or "
        "leave the option out",
        index, image.width, image.height, mix.partner, partner.width, partner.height);
  write_augmented(moved_, index);
  write_augmented(partner_, mix.partner);
  mix_pixels(moved_, partner_, image.width, mix);
  slot.partners.data()[at] = mix.partner;
  slot.shares.data()[at] = mix.share(image.width, image.height);
  return moved_.data();
}

/// Draws the flip and shift of an image.
Augmentation Loader::augmentation(const Dataset::Image& image, uint64_t index) const {
  const auto epoch = static_cast<uint64_t>(options_.epoch);
  Augmentation result;
  if (options_.flip) result.mirrored = static_cast<int32_t>(random_bits(options_.seed, flip_stream + epoch, index) & 1);
  const int reach = options_.shift ? std::min(image.width, image.height) / 8 : 0;
  if (reach == 0) return result;
  Random random(random_bits(options_.seed, shift_stream + epoch, index));
  const auto drawn = [&] { return static_cast<int>(random.below(static_cast<uint64_t>(2 * reach + 1))) - reach; };
  result.right = drawn();
  result.down = drawn();
  return result;
}

/// The pixels of an image; with options_.cut a copy in `cut_`, a random square of which is hidden.
const uint8_t* Loader::with_square_hidden(const Dataset::Image& image, uint64_t index, const uint8_t* pixels) {
  if (!options_.cut) return pixels;
  cut_.assign(pixels, pixels + pixel_bytes(image));
  Random random(random_bits(options_.seed, cut_stream + static_cast<uint64_t>(options_.epoch), index));
  const auto x = static_cast<int>(random.below(static_cast<uint64_t>(image.width)));
  const auto y = static_cast<int>(random.below(static_cast<uint64_t>(image.height)));
  hide_square(cut_.data(), image.width, image.height, x, y);
  return cut_.data();
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);  // else the thread could miss `stop_` between its check and its sleep
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

bool Loader::next(Batch& batch) {
  if (upcoming_ == batches_) return false;
  const Stopwatch watch;
  {
    std::unique_lock lock(mutex_);
    given_back_ = upcoming_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return filled_ > upcoming_ || error_ != nullptr; });
    // Batches before the error come first, so that what the caller gets does not depend on timing.
    if (filled_ <= upcoming_) std::rethrow_exception(error_);
  }
  wait_seconds_ += watch.seconds();
  const Slot& slot = slots_[static_cast<size_t>(upcoming_ % 2)];
  const auto size = static_cast<size_t>(slot.size);
  batch = {};
  if (options_.raw) {
    const Dataset::Image& first = dataset_.images[0];
    batch.pixels = {slot.pixels.data(), {slot.size, first.height, first.width, 3}};
    batch.augmentations = {slot.augmentations.data(), size};
  } else {
    batch.images = {slot.images.data(), {slot.size, crop_, crop_, 3}};
  }
  batch.labels = {slot.labels.data(), size};
  batch.indices = {slot.indices.data(), size};
  if (options_.mixing.enabled()) {
    batch.partners = {slot.partners.data(), size};
    batch.shares = {slot.shares.data(), size};
  }
  ++upcoming_;
  return true;
}

}  // namespace nibblenet
