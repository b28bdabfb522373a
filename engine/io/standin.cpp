#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>

#include "engine/core/random.h"
#include "engine/io/cifar10.h"
#include "engine/io/dataset.h"

namespace nibblenet {
namespace {

constexpr float side = static_cast<float>(cifar_side);

using Colour = std::array<float, 3>;

/// The parameters of one picture. Only +, -, *, / and square roots lead from the random bits to the
/// bytes, so that every machine draws the same bytes.
struct Scene {
  Colour figure{};
  Colour ground{};
  Colour ground_slope{};       // the ground changes by this much from left to right
  float x = 0, y = 0;          // centre of a shape, phase of a texture, in pixels
  float radius = 0;            // of a shape; a texture's stripe is half as wide
  float cosine = 1, sine = 0;  // a slight turn
  float noise = 0;             // largest change of a byte by noise
};

float between(Random& random, float low, float high) { return low + (high - low) * random.uniform(); }

Scene draw_scene(Random& random) {
  Scene scene;
  // Draws until the two colours differ enough. Either may be the brighter one.
  float contrast = 0;
  while (contrast < 120) {
    contrast = 0;
    for (size_t channel = 0; channel < 3; ++channel) {
      scene.figure[channel] = between(random, 20, 235);
      scene.ground[channel] = between(random, 20, 235);
      contrast += std::abs(scene.figure[channel] - scene.ground[channel]);
    }
  }
  for (float& slope : scene.ground_slope) slope = between(random, -25, 25);
  scene.radius = between(random, 6, 12);
  scene.x = between(random, scene.radius, side - scene.radius);
  scene.y = between(random, scene.radius, side - scene.radius);
  const float tangent = between(random, -0.25F, 0.25F);
  scene.cosine = 1 / std::sqrt(1 + tangent * tangent);
  scene.sine = tangent * scene.cosine;
  scene.noise = between(random, 5, 45);
  return scene;
}

/// Signed distance to the edge of stripes of `period`: -period/4 in the middle of a stripe,
/// +period/4 in the middle between two.
float wave(float position, float period) {
  const float phase = position / period - std::floor(position / period);
  return (std::abs(phase - 0.5F) - 0.25F) * period;
}

/// Signed distance in pixels from (u, v), relative to the centre, to the class's figure: negative
/// inside. Labels are those of standin_classes().
float distance_to_figure(size_t label, float u, float v, float radius) {
  const float from_centre = std::sqrt(u * u + v * v);
  const float across = std::max(std::abs(u), std::abs(v));
  const float period = radius;
  switch (label) {
    case 0:  // disc
      return from_centre - radius;
    case 1:  // ring
      return std::abs(from_centre - 0.75F * radius) - 0.22F * radius;
    case 2:  // square
      return across - 0.85F * radius;
    case 3:  // triangle, point upwards
      return std::max(v - 0.7F * radius, (2 * std::abs(u) - v) / std::sqrt(5.0F) - 0.45F * radius);
    case 4:  // cross
      return std::max(across - radius, std::min(std::abs(u), std::abs(v)) - 0.28F * radius);
    case 5:  // horizontal stripes
      return wave(v, period);
    case 6:  // vertical stripes
      return wave(u, period);
    case 7: {  // diagonal stripes
      constexpr float root_half = 0.70710678F;
      return wave((u + v) * root_half, period);
    }
    case 8: {  // checkerboard: inside where the signs of two waves agree
      const float a = wave(u, 1.5F * period);
      const float b = wave(v, 1.5F * period);
      return (a < 0) == (b < 0) ? -std::min(std::abs(a), std::abs(b)) : std::min(std::abs(a), std::abs(b));
    }
    default: {  // dots: discs on a grid
      const float a = wave(u, period) + period / 4;
      const float b = wave(v, period) + period / 4;
      return std::sqrt(a * a + b * b) - 0.3F * period;
    }
  }
}

/// Draws one record of the binary format: the label, then the planes.
void draw(Random& random, uint8_t label, uint8_t* record) {
  const Scene scene = draw_scene(random);
  record[0] = label;
  for (size_t i = 0; i < cifar_plane_bytes; ++i) {
    const size_t column = i % cifar_side, row = i / cifar_side;
    const float x = static_cast<float>(column) + 0.5F;
    const float y = static_cast<float>(row) + 0.5F;
    const float u = (x - scene.x) * scene.cosine + (y - scene.y) * scene.sine;
    const float v = (y - scene.y) * scene.cosine - (x - scene.x) * scene.sine;
    const float cover = std::clamp(0.5F - distance_to_figure(label, u, v, scene.radius), 0.0F, 1.0F);
    uint64_t bits = random.bits();
    for (size_t channel = 0; channel < 3; ++channel, bits >>= 16) {
      const float ground = scene.ground[channel] + scene.ground_slope[channel] * (x / side - 0.5F);
      // The sum of two uniform bytes: a triangle between -1 and 1.
      const float noise = (static_cast<float>((bits & 255) + ((bits >> 8) & 255)) - 255.0F) / 255.0F;
      const float value = ground + cover * (scene.figure[channel] - ground) + scene.noise * noise;
      record[1 + channel * cifar_plane_bytes + i] = static_cast<uint8_t>(std::clamp(value + 0.5F, 0.0F, 255.0F));
    }
  }
}

/// The label of an image: each ten images hold every class once, from a random one on.
uint8_t label_of(uint64_t seed, uint64_t stream, int64_t index) {
  const auto ten = static_cast<uint64_t>(index / 10);
  return static_cast<uint8_t>((static_cast<uint64_t>(index % 10) + random_bits(seed, stream, ten) % 10) % 10);
}

void write_file(const std::filesystem::path& path, const char* data, size_t size) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(data, static_cast<std::streamsize>(size));
  file.close();
  if (!file) fail<IoError>("cannot write {} ({} bytes): no permission or no space left", path.string(), size);
}

std::string names_text() {
  std::string text;
  for (const std::string& name : standin_classes()) text += name + "\n";
  return text;
}

/// Writes images [begin, end) of a split. Each has its own random stream, so that any part can be
/// drawn alone.
void write_batch(const std::filesystem::path& path, Split split, int64_t begin, int64_t end, uint64_t seed) {
  const uint64_t split_stream = split == Split::train ? 0 : uint64_t{1} << 40;
  const uint64_t label_stream = (uint64_t{1} << 41) + split_stream;
  std::vector<uint8_t> records(static_cast<size_t>(end - begin) * cifar_record_bytes);
  for (int64_t i = begin; i < end; ++i) {
    Random random(seed, split_stream + static_cast<uint64_t>(i));
    draw(random, label_of(seed, label_stream, i), records.data() + static_cast<size_t>(i - begin) * cifar_record_bytes);
  }
  write_file(path, reinterpret_cast<const char*>(records.data()), records.size());
}

/// Makes the folder. Throws UsageError when it holds a data set with other class names: the
/// stand-in never replaces a real one.
void prepare_folder(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail<IoError>("cannot make the folder {}: {}", folder.string(), error.message());
  const fs::path names = folder / "batches.meta.txt";
  bool foreign = false;
  if (fs::exists(names)) {
    std::ifstream file(names, std::ios::binary);
    foreign = std::string(std::istreambuf_iterator<char>(file), {}) != names_text();
  } else {
    foreign = fs::exists(folder / "data_batch_1.bin") || fs::exists(folder / "test_batch.bin");
  }
  if (foreign) fail<UsageError>("{} holds another data set; choose another folder for the stand-in", folder.string());
  // This file comes first, so that the next run recognises what an interrupted one left.
  const std::string text = names_text();
  write_file(names, text.data(), text.size());
}

}  // namespace

const std::array<std::string, 10>& standin_classes() {
  static const std::array<std::string, 10> names = {"disc",
                                                    "ring",
                                                    "square",
                                                    "triangle",
                                                    "cross",
                                                    "horizontal stripes",
                                                    "vertical stripes",
                                                    "diagonal stripes",
                                                    "checkerboard",
                                                    "dots"};
  return names;
}

void write_standin(const std::filesystem::path& folder, int64_t train_images, int64_t test_images, uint64_t seed) {
  constexpr int64_t most = 1'000'000;
  if (train_images < 1 || test_images < 1 || train_images > most || test_images > most)
    fail<UsageError>("a stand-in of {} + {} images is not supported; use 1 to {} of each", train_images, test_images,
                     most);
  prepare_folder(folder);
  for (int64_t part = 0; part < cifar_train_files; ++part) {
    const auto path = folder / fmt::format("data_batch_{}.bin", part + 1);
    // Rounded up, so that fewer than five images go to the first files: empty files are not valid.
    const int64_t share = (train_images + cifar_train_files - 1) / cifar_train_files;
    const int64_t begin = std::min(train_images, part * share);
    const int64_t end = std::min(train_images, begin + share);
    std::error_code nothing_there;
    std::filesystem::remove(path, nothing_there);
    if (begin < end) write_batch(path, Split::train, begin, end, seed);
  }
  write_batch(folder / "test_batch.bin", Split::test, 0, test_images, seed);
}

}  // namespace nibblenet
