#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "engine/core/parallel.h"
#include "engine/core/threads.h"
#include "engine/io/archive.h"
#include "engine/io/image.h"
#include "engine/io/preprocess.h"
#include "layers/network/class_names.h"
#include "layers/network/guesses.h"
#include "layers/network/image_batch.h"
#include "layers/network/pass.h"
#include "tools/common/command_line.h"
#include "tools/common/model_search.h"
#include "tools/common/progress.h"
#include "tools/common/report.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;
namespace fs = std::filesystem;

struct Options : CommonOptions {
  std::vector<std::string> images;
  int64_t top = 3;
  bool no_fold_first = false;
};

/// A picture and the network's answer.
struct Picture {
  std::string path;
  int width = 0;
  int height = 0;
  std::vector<Guess> top;  ///< best first
  std::string error;       ///< why there is no guess; else empty
};

/// The pictures that a folder holds, by name; files of other kinds are passed over.
std::vector<Picture> pictures_in(const std::string& folder) {
  std::vector<Picture> pictures;
  walk_files(folder, [&](FileEntry& entry) {
    if (picture_kind(entry.parts().back()) != PictureKind::none) pictures.push_back({.path = entry.location()});
  });
  std::ranges::sort(pictures, {}, &Picture::path);
  return pictures;
}

std::vector<Picture> find_pictures(const std::vector<std::string>& arguments) {
  std::vector<Picture> pictures;
  for (const std::string& argument : arguments) {
    std::error_code error;
    if (!fs::is_directory(argument, error)) {
      pictures.push_back({.path = argument});
      continue;
    }
    std::vector<Picture> found = pictures_in(argument);
    if (found.empty()) fail<UsageError>("the folder {} holds no .jpg, .jpeg, .png or .bmp", argument);
    std::ranges::move(found, std::back_inserter(pictures));
  }
  return pictures;
}

/// The size that all readable pictures have; nothing where they differ or are not small. Larger
/// ones are hardly enlarged. Reads small pictures one by one, which takes little beside their
/// forward passes, and stops at the first that does not fit.
std::optional<ImageSize> common_small_size(const std::vector<Picture>& pictures) {
  constexpr int64_t most_pixels = 128 * 128;
  std::optional<ImageSize> common;
  for (const Picture& picture : pictures) {
    if (interrupted()) throw Stopped("stopped");
    try {
      const RgbImage image = read_image(picture.path);
      if (int64_t{image.width} * image.height > most_pixels) return std::nullopt;
      if (common && (common->width != image.width || common->height != image.height)) return std::nullopt;
      common = {image.width, image.height};
    } catch (const Error&) {  // its line of the results will say why
    }
  }
  return common;
}

/// Reads pictures and classifies them, some at a time.
class Classifier {
 public:
  /// For calls with up to `most` pictures, which all have the size `folded` where the network is
  /// folded.
  Classifier(Network& network, int image_size, size_t most, int threads, const std::optional<ImageSize>& folded)
      : network_(network),
        preprocess_(Preprocess::for_image_size(image_size)),
        batch_(std::clamp<size_t>(most, 1, largest_batch(image_size))),
        threads_(threads > 0 ? static_cast<unsigned>(threads) : default_threads()),
        pass_(network, 0, network.layers().size(), shape(batch_), Pass::Mode::inference),
        size_(network.folded() ? folded : std::nullopt),
        images_(network.backend(), preprocess_, static_cast<int64_t>(batch_), network.storage(), size_,
                size_ ? ImageBytes::kept : ImageBytes::prepared),
        logits_(batch_ * static_cast<size_t>(network.classes())) {
    if (size_) bytes_.resize(batch_ * bytes_of_one());
  }

  /// How many pictures a call takes at most.
  size_t batch() const { return batch_; }

  void classify(std::span<Picture> pictures, int64_t top) {
    const TensorView<const float> output = size_ ? forward_from_bytes(pictures) : forward_prepared(pictures);
    network_.backend().copy_to_host(logits_.data(), output.data(), output.span().size_bytes());
    const auto classes = static_cast<size_t>(network_.classes());
    for (size_t i = 0; i < pictures.size(); ++i) {
      if (!pictures[i].error.empty()) continue;
      try {
        pictures[i].top = best_guesses(std::span(logits_).subspan(i * classes, classes), top);
      } catch (const Error& error) {
        pictures[i].error = error.what();
      }
    }
  }

 private:
  static constexpr unsigned most_decoders = 8;  // each may hold a picture of 100 million pixels

  /// 32 images of 224 x 224 pixels, fewer of larger ones.
  static size_t largest_batch(int image_size) {
    constexpr size_t batch = 32, pixels = 224 * 224;
    const auto size = static_cast<size_t>(image_size);
    return std::clamp<size_t>(batch * pixels / (size * size), 1, batch);
  }
  Shape shape(size_t images) const { return {static_cast<int64_t>(images), preprocess_.crop, preprocess_.crop, 3}; }

  size_t bytes_of_one() const { return size_t{3} * static_cast<size_t>(size_->width * size_->height); }

  TensorView<const float> forward_prepared(std::span<Picture> pictures) {
    const TensorView<float> images = images_.host_images().slice(0, static_cast<int64_t>(pictures.size()));
    parallel_for(pictures.size(), std::min(threads_, most_decoders), 1, [&](size_t i) {
      const std::span<float> out = images.slice(static_cast<int64_t>(i), 1).span();
      read(pictures[i], out, [&](const RgbImage& image) {
        Preprocessor(preprocess_).run(image.pixels.data(), image.width, image.height, false, out.data());
      });
    });
    return pass_.forward(images_.upload(images));
  }

  TensorView<const float> forward_from_bytes(std::span<Picture> pictures) {
    parallel_for(pictures.size(), std::min(threads_, most_decoders), 1, [&](size_t i) {
      const std::span<uint8_t> out = std::span(bytes_).subspan(i * bytes_of_one(), bytes_of_one());
      read(pictures[i], out, [&](const RgbImage& image) {
        if (image.width != size_->width || image.height != size_->height)
          fail<FormatError>("{} has changed from {} x {} to {} x {} pixels meanwhile", pictures[i].path, size_->width,
                            size_->height, image.width, image.height);
        std::ranges::copy(image.pixels, out.begin());
      });
    });
    const Shape shape{static_cast<int64_t>(pictures.size()), size_->height, size_->width, 3};
    return pass_.forward(images_.upload(TensorView<const uint8_t>(bytes_.data(), shape), {}));
  }

  /// Reads one picture, and has it written to `out`. An error is kept with the picture.
  template <class T>
  static void read(Picture& picture, std::span<T> out, const auto& write) {
    try {
      const RgbImage image = read_image(picture.path);
      picture.width = image.width;
      picture.height = image.height;
      write(image);
    } catch (const Error& error) {
      picture.error = error.what();
      std::ranges::fill(out, T{0});
    } catch (const std::bad_alloc&) {
      picture.error = fmt::format("{}: out of memory", picture.path);
      std::ranges::fill(out, T{0});
    }
  }

  Network& network_;
  Preprocess preprocess_;
  size_t batch_;
  unsigned threads_;
  Pass pass_;
  std::optional<ImageSize> size_;  ///< of every picture, where the network is folded
  ImageBatch images_;
  std::vector<uint8_t> bytes_;  ///< [batch, height, width, 3] where the network is folded
  std::vector<float> logits_;   ///< [batch, classes]
};

size_t longest(size_t at_least, size_t at_most, const auto& texts, auto length) {
  for (const auto& text : texts) at_least = std::max(at_least, length(text));
  return std::min(at_least, at_most);
}

/// Prints results for people: one block for one picture, a table for many.
class Printer {
 public:
  Printer(const std::vector<Picture>& pictures, const std::vector<std::string>& names)
      : names_(names),
        path_width_(longest(5, 60, pictures, [](const Picture& picture) { return picture.path.size(); })),
        name_width_(longest(5, 30, names, [](const std::string& name) { return name.size(); })) {}

  void block(const Picture& picture) const {
    if (!picture.error.empty()) return;  // is the tool's error
    fmt::print("{} ({} x {} pixels)\n", printable(picture.path), picture.width, picture.height);
    for (const Guess& guess : picture.top)
      fmt::print("  {:<{}} {:>7.2f} %\n", name(guess), name_width_, 100 * guess.probability);
  }

  void header() const { fmt::print("{:<{}}  {:<{}} probability  next\n", "image", path_width_, "class", name_width_); }

  void row(const Picture& picture) const {
    fmt::print("{:<{}}  ", printable(picture.path), path_width_);
    if (!picture.error.empty()) {
      fmt::print("error: {}\n", printable(picture.error));
      return;
    }
    fmt::print("{:<{}} {:>9.2f} %", name(picture.top[0]), name_width_, 100 * picture.top[0].probability);
    for (size_t i = 1; i < picture.top.size(); ++i)
      fmt::print("{}{} {:.2f} %", i == 1 ? "  " : ", ", name(picture.top[i]), 100 * picture.top[i].probability);
    fmt::print("\n");
  }

 private:
  std::string name(const Guess& guess) const { return printable(names_[static_cast<size_t>(guess.label)]); }

  const std::vector<std::string>& names_;
  size_t path_width_;
  size_t name_width_;
};

nlohmann::json to_json(const std::vector<Picture>& pictures, const std::vector<std::string>& names) {
  nlohmann::json results = nlohmann::json::array();
  for (const Picture& picture : pictures) {
    nlohmann::json result = {{"image", picture.path}};
    if (!picture.error.empty()) {
      result["error"] = picture.error;
    } else {
      result["width"] = picture.width;
      result["height"] = picture.height;
      for (const Guess& guess : picture.top)
        result["top"].push_back({{"label", guess.label},
                                 {"class", names[static_cast<size_t>(guess.label)]},
                                 {"probability", guess.probability}});
    }
    results.push_back(std::move(result));
  }
  return results;
}

/// Classifies all pictures and prints each result as it comes.
void classify_all(Classifier& classifier, std::vector<Picture>& pictures, int64_t top, const Printer& printer) {
  std::optional<Progress> progress;
  if (isatty(STDOUT_FILENO) == 0) progress.emplace("classifying", "images");  // else the table itself shows it
  if (pictures.size() > 1) printer.header();
  for (size_t done = 0; done < pictures.size();) {
    if (interrupted()) throw Stopped(fmt::format("stopped after {} of {} images", done, pictures.size()));
    const std::span<Picture> some =
        std::span(pictures).subspan(done, std::min(classifier.batch(), pictures.size() - done));
    classifier.classify(some, top);
    for (const Picture& picture : some) pictures.size() > 1 ? printer.row(picture) : printer.block(picture);
    std::fflush(stdout);
    done += some.size();
    if (progress) progress->update(static_cast<int64_t>(done), static_cast<int64_t>(pictures.size()));
  }
}

void classify(const Options& options) {
  const fs::path model = find_model(options.model, ModelKind::packed);
  StateDict dict = load_model(model, options.checksums);
  const int image_size = image_size_of(dict);
  const auto metadata = dict.metadata;
  std::vector<Picture> pictures = find_pictures(options.images);

  const auto backend = options.device.make();
  const PrecisionChoice choice = options.device.precision_of(*backend, dict);
  const std::optional<ImageSize> size = options.no_fold_first ? std::nullopt : common_small_size(pictures);
  std::optional<ResampleTables> tables;
  if (size) tables = make_resample_tables(Preprocess::for_image_size(image_size), size->width, size->height);
  Network network(*backend, std::move(dict), choice.precision, tables ? &*tables : nullptr, Folding::where_it_saves);
  expect_demanded(choice, network);
  const std::vector<std::string> names = class_names(metadata, network.classes());
  fmt::print("{} ({}, {}{})\n", model.string(), backend->description(), to_string(choice.precision),
             network.folded() ? ", first convolution folded" : "");
  print_precision(choice, network);
  Classifier classifier(network, image_size, pictures.size(), options.device.threads, size);
  classify_all(classifier, pictures, options.top, Printer(pictures, names));

  const auto failed = std::ranges::count_if(pictures, [](const Picture& picture) { return !picture.error.empty(); });
  nlohmann::json document = {{"model", model.string()},
                             {"device", backend->name()},
                             {"image_size", image_size},
                             {"first_folded", network.folded()},
                             {"images", pictures.size()},
                             {"failed", failed},
                             {"results", to_json(pictures, names)}};
  document.update(precision_json(choice, network));
  write_json(options.json, std::move(document));
  if (failed > 0 && pictures.size() == 1) throw Error(pictures[0].error);
  if (failed > 0) fail<Error>("{} of {} images could not be classified; their lines say why", failed, pictures.size());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Says what pictures show: the likeliest classes and their probabilities. Takes JPEG, PNG and BMP of up to 64 MiB "
      "and 100 million pixels. Prepares them like the images of a data set: resized (shorter side, bilinear), cropped "
      "to the middle, normalised; orientation tags are ignored. A broken picture does not stop the others; the exit "
      "status is then 1.",
      "classify");
  Options options;
  app.add_option("IMAGE", options.images,
                 "JPEG, PNG or BMP files, or folders (their .jpg, .jpeg, .png and .bmp, up to 32 levels deep)")
      ->required();
  app.add_option("--model", options.model,
                 fmt::format("Float or packed model ({}); without it the newest packed one in weights/", model_files))
      ->type_name("FILE");
  add_checked(app, "--top", options.top, CLI::Range(1, 1'000'000), "Show the K likeliest classes")->type_name("K");
  app.add_flag(
      "--no-fold-first", options.no_fold_first,
      "Enlarge and normalise all pictures first. Without it the first convolution is folded with that where all "
      "pictures have one small size, like 32 x 32, and that saves work: probabilities differ a little, since "
      "enlarged pixels are not rounded to bytes");
  options.device.add_precision_to(app, "auto");
  options.add_to(app);
  return run_long_tool(app, argc, argv, [&] { classify(options); });
}
