// jpeglib.h needs what <cstdio> declares.
// clang-format off
#include <cstdio>
#include <jpeglib.h>
// clang-format on

#include <algorithm>
#include <array>
#include <vector>

#include "engine/core/error.h"
#include "engine/io/image_decoders.h"

namespace nibblenet {
namespace {

/// More scans than any encoder writes. Each costs a pass over the whole picture, even when it has
/// only a few bytes.
constexpr int max_scans = 200;

/// a * b / 255, rounded, for bytes: Pillow's formula.
constexpr int multiply_bytes(int a, int b) {
  const int product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

/// Red, green and blue of inverted CMYK (Adobe's convention, which Pillow assumes of every JPEG
/// with four components).
void convert_inverted_cmyk(const uint8_t* cmyk, int width, uint8_t* rgb) {
  for (int x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    for (int channel = 0; channel < 3; ++channel)
      rgb[channel] = static_cast<uint8_t>(cmyk[3] - multiply_bytes(255 - cmyk[channel], cmyk[3]));
  }
}

/// Decodes by libjpeg-turbo with Pillow's settings: the defaults, which are the exact integer DCT
/// (islow) and smooth ("fancy") upsampling of colours. As in Pillow, a warning changes nothing, and
/// a file that ends before its last pixel is an error. libjpeg's own source would insert an end
/// marker there; this one reports that there is no more data.
class JpegReader {
 public:
  JpegReader(std::span<const uint8_t> file, std::string_view name) : file_(file), name_(name) {}
  ~JpegReader() { jpeg_destroy_decompress(&decoder_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  RgbImage read() {
    read_header();
    RgbImage image{static_cast<int>(decoder_.image_width), static_cast<int>(decoder_.image_height), {}};
    expect_image_size(image.width, image.height, file_.size(), max_pixels_per_file_byte, name_);
    if (decoder_.num_components != 1 && decoder_.num_components != 3 && decoder_.num_components != 4)
      fail<FormatError>("{} has {} components a pixel; JPEGs of 1 (grey), 3 (colour) and 4 (CMYK) are read", name_,
                        decoder_.num_components);
    start(image);
    image.pixels.resize(static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3);
    read_rows(image);
    return image;
  }

 private:
  static JpegReader& reader_of(j_common_ptr decoder) { return *static_cast<JpegReader*>(decoder->client_data); }

  static void on_error(j_common_ptr decoder) {
    JpegReader& reader = reader_of(decoder);
    decoder->err->format_message(decoder, reader.reason_.data());
    std::longjmp(reader.failed_, 1);
  }
  static void on_progress(j_common_ptr decoder) {
    JpegReader& reader = reader_of(decoder);
    if (reader.decoder_.input_scan_number <= max_scans) return;
    std::snprintf(reader.reason_.data(), reader.reason_.size(), "it has more than %d scans", max_scans);
    std::longjmp(reader.failed_, 1);
  }
  static boolean need_more(j_decompress_ptr) { return FALSE; }
  static void skip(j_decompress_ptr decoder, long bytes) {
    if (bytes <= 0) return;
    const size_t skipped = std::min(static_cast<size_t>(bytes), decoder->src->bytes_in_buffer);
    decoder->src->next_input_byte += skipped;
    decoder->src->bytes_in_buffer -= skipped;
  }

  /// Runs calls of libjpeg. `calls` returns whether the data sufficed.
  template <class Calls>
  void run(const Calls& calls) {
    bool sufficed = false;
    if (!runs_without_longjmp(failed_, [&] { sufficed = calls(); }))
      fail<FormatError>("{} cannot be decoded as JPEG: {}", name_, reason_.data());
    if (!sufficed) fail<FormatError>("{} is not a readable JPEG: it ends early", name_);
  }

  void read_header() {
    decoder_.err = jpeg_std_error(&errors_);
    errors_.error_exit = on_error;
    errors_.emit_message = [](j_common_ptr, int) {};
    decoder_.client_data = this;  // jpeg_create_decompress keeps it
    source_.next_input_byte = file_.data();
    source_.bytes_in_buffer = file_.size();
    source_.init_source = [](j_decompress_ptr) {};
    source_.fill_input_buffer = need_more;
    source_.skip_input_data = skip;
    source_.resync_to_restart = jpeg_resync_to_restart;
    source_.term_source = [](j_decompress_ptr) {};
    progress_.progress_monitor = on_progress;
    run([&] {
      jpeg_create_decompress(&decoder_);
      decoder_.src = &source_;
      decoder_.progress = &progress_;
      return jpeg_read_header(&decoder_, TRUE) == JPEG_HEADER_OK;
    });
  }

  void start(const RgbImage& image) {
    // Coefficients of a progressive JPEG: 2 bytes for each of 4 components, in blocks of up to 32 x
    // 32 pixels.
    constexpr long unit = 32, bytes_a_pixel = 8, slack = 1 << 20;
    decoder_.mem->max_memory_to_use = (image.width + unit) * (image.height + unit) * bytes_a_pixel + slack;
    decoder_.out_color_space = decoder_.num_components == 4 ? JCS_CMYK : JCS_RGB;
    run([&] { return jpeg_start_decompress(&decoder_) != 0; });
  }

  void read_rows(RgbImage& image) {
    const size_t row_bytes = static_cast<size_t>(image.width) * 3;
    std::vector<uint8_t> cmyk(decoder_.num_components == 4 ? static_cast<size_t>(image.width) * 4 : 0);
    run([&] {
      while (decoder_.output_scanline < decoder_.output_height) {
        uint8_t* rgb = image.pixels.data() + decoder_.output_scanline * row_bytes;
        uint8_t* row = cmyk.empty() ? rgb : cmyk.data();
        if (jpeg_read_scanlines(&decoder_, &row, 1) != 1) return false;
        if (!cmyk.empty()) convert_inverted_cmyk(row, image.width, rgb);
      }
      jpeg_finish_decompress(&decoder_);  // errors behind the pixels count, a missing end marker does not: as in Pillow
      return true;
    });
  }

  std::span<const uint8_t> file_;
  std::string_view name_;
  jpeg_decompress_struct decoder_{};
  jpeg_error_mgr errors_{};
  jpeg_source_mgr source_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf failed_{};
  std::array<char, JMSG_LENGTH_MAX> reason_{};
};

}  // namespace

RgbImage decode_jpeg(std::span<const uint8_t> file, std::string_view name) { return JpegReader(file, name).read(); }

}  // namespace nibblenet
