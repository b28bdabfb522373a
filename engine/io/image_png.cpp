#include <png.h>

#include <array>
#include <cstdio>
#include <cstring>

#include "engine/core/error.h"
#include "engine/io/image_decoders.h"

namespace nibblenet {
namespace {

/// Decodes by libpng, which zeroes the colours that a palette lacks, and checks the CRC of every
/// chunk up to the last pixel.
class PngReader {
 public:
  PngReader(std::span<const uint8_t> file, std::string_view name) : file_(file), rest_(file), name_(name) {}
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  RgbImage read() {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, png_const_charp) {});
    info_ = png_ != nullptr ? png_create_info_struct(png_) : nullptr;
    if (info_ == nullptr) throw std::bad_alloc();
    run([&] { read_header(); });
    RgbImage image{
        static_cast<int>(png_get_image_width(png_, info_)), static_cast<int>(png_get_image_height(png_, info_)), {}};
    expect_image_size(image.width, image.height, file_.size(), max_pixels_per_file_byte, name_);
    image.pixels.resize(static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3);
    if (!runs_without_longjmp(failed_, [&] { read_rows(image); }) && !lacks_only_its_checksum()) fail_as_libpng();
    return image;
  }

 private:
  static void on_error(png_structp png, png_const_charp message) {
    auto& reader = *static_cast<PngReader*>(png_get_error_ptr(png));
    std::snprintf(reader.reason_.data(), reader.reason_.size(), "%s", message);
    std::longjmp(reader.failed_, 1);
  }
  static void take(png_structp png, png_bytep to, size_t bytes) {
    auto& reader = *static_cast<PngReader*>(png_get_io_ptr(png));
    if (bytes > reader.rest_.size()) png_error(png, "it ends early");
    std::memcpy(to, reader.rest_.data(), bytes);
    reader.rest_ = reader.rest_.subspan(bytes);
  }

  static void count_row(png_structp png, png_row_infop, png_bytep) {
    ++static_cast<PngReader*>(png_get_error_ptr(png))->rows_decoded_;
  }

  [[noreturn]] void fail_as_libpng() const { fail<FormatError>("{} is not a readable PNG: {}", name_, reason_.data()); }
  template <class Calls>
  void run(const Calls& calls) {
    if (!runs_without_longjmp(failed_, calls)) fail_as_libpng();
  }

  /// Whether every row arrived before the IDAT chunks, whose CRCs are right, ended: then only the
  /// stream's end and its Adler-32 can be missing. Pillow reads such pictures.
  bool lacks_only_its_checksum() const {
    const png_uint_32 width = png_get_image_width(png_, info_), height = png_get_image_height(png_, info_);
    png_uint_32 rows = height;
    if (png_get_interlace_type(png_, info_) == PNG_INTERLACE_ADAM7) {
      rows = 0;
      for (int pass = 0; pass < PNG_INTERLACE_ADAM7_PASSES; ++pass)
        if (PNG_PASS_COLS(width, pass) > 0) rows += PNG_PASS_ROWS(height, pass);
    }
    return rows_decoded_ == rows && std::string_view(reason_.data()) == "Not enough image data";
  }

  void read_header() {
    png_set_read_fn(png_, this, take);
    png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // expect_image_size has the limits
    png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_set_option(png_, PNG_MAXIMUM_INFLATE_WINDOW, PNG_OPTION_ON);  // as Pillow: the stream's own claim may be wrong
    // Only pixels matter: text, colour profiles and transparency are not even decompressed.
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
    constexpr png_byte transparency[] = "tRNS";
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, transparency, 1);
    png_read_info(png_, info_);
  }

  void read_rows(RgbImage& image) {
    png_set_expand(png_);
    png_set_strip_16(png_);
    png_set_strip_alpha(png_);
    png_set_gray_to_rgb(png_);
    png_set_read_user_transform_fn(png_, count_row);
    const int passes = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    const size_t row_bytes = static_cast<size_t>(image.width) * 3;
    if (png_get_rowbytes(png_, info_) != row_bytes) png_error(png_, "its rows do not become RGB");
    for (int pass = 0; pass < passes; ++pass) {
      for (size_t y = 0; y < static_cast<size_t>(image.height); ++y)
        png_read_row(png_, image.pixels.data() + y * row_bytes, nullptr);
    }
  }

  std::span<const uint8_t> file_;
  std::span<const uint8_t> rest_;  // not read yet
  std::string_view name_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  png_uint_32 rows_decoded_ = 0;  // of all passes
  std::jmp_buf failed_{};
  std::array<char, 160> reason_{};
};

}  // namespace

RgbImage decode_png(std::span<const uint8_t> file, std::string_view name) {
  constexpr std::string_view apple = "CgBI";
  constexpr size_t first_type = 12;
  if (file.size() >= first_type + apple.size() &&
      std::memcmp(file.data() + first_type, apple.data(), apple.size()) == 0)
    fail<FormatError>("{} is in Apple's CgBI form of PNG, which only Apple's software reads; convert it to a plain PNG",
                      name);
  return PngReader(file, name).read();
}

}  // namespace nibblenet
