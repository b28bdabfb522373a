#include "engine/io/image.h"

#include <algorithm>
#include <array>
#include <string>

#include "engine/core/error.h"
#include "engine/io/archive.h"
#include "engine/io/image_decoders.h"

namespace nibblenet {
namespace {

constexpr std::array<std::string_view, 4> readable = {".jpg", ".jpeg", ".png", ".bmp"};
constexpr std::array<std::string_view, 7> unreadable = {".gif", ".heic", ".ppm", ".tif", ".tiff", ".webp", ".avif"};

}  // namespace

PictureKind picture_kind(std::string_view file_name) {
  const size_t dot = file_name.rfind('.');
  std::string extension(dot == std::string_view::npos ? "" : file_name.substr(dot));
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (std::ranges::find(readable, extension) != readable.end()) return PictureKind::readable;
  return std::ranges::find(unreadable, extension) != unreadable.end() ? PictureKind::unreadable : PictureKind::none;
}

void expect_image_size(int64_t width, int64_t height, size_t file_bytes, int64_t most_per_byte, std::string_view name) {
  if (width < 1 || height < 1 || width > max_image_pixels || width * height > max_image_pixels)
    fail<FormatError>("{} says it has {} x {} pixels; images of 1 to {} pixels are read", name, width, height,
                      max_image_pixels);
  if (width * height > most_per_byte * static_cast<int64_t>(file_bytes))
    fail<FormatError>("{} is damaged: it says it has {} x {} pixels, more than its {} bytes can hold", name, width,
                      height, file_bytes);
}

RgbImage decode_image(std::span<const uint8_t> file, std::string_view name) {
  if (file.size() > max_image_file_bytes)
    fail<FormatError>("{} has {} bytes; images of up to {} are read", name, file.size(), max_image_file_bytes);
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (text.starts_with("\xFF\xD8\xFF")) return decode_jpeg(file, name);
  if (text.starts_with("\x89PNG\r\n\x1A\n")) return decode_png(file, name);
  if (text.starts_with("BM")) return decode_bmp(file, name);
  fail<FormatError>("{} is no JPEG, PNG or BMP", name);
}

RgbImage read_image(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error))
    fail<IoError>("cannot open {}: neither a file nor a folder", path.string());
  return decode_image(read_file(path, max_image_file_bytes), path.string());
}

}  // namespace nibblenet
