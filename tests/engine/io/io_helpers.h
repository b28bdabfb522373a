#pragma once

#include <archive.h>
#include <archive_entry.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/core/error.h"
#include "engine/io/cifar10.h"

/// Small files that the tests of engine/io make for themselves.
namespace nibblenet::testing {

using Bytes = std::vector<uint8_t>;

inline void write_bytes(const std::filesystem::path& path, std::span<const uint8_t> bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

inline Bytes read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline Bytes bytes_of_text(const std::string& text) { return {text.begin(), text.end()}; }

inline void append(Bytes& bytes, std::span<const uint8_t> more) {
  for (const uint8_t byte : more) bytes.push_back(byte);
}

inline void append_big_endian(Bytes& bytes, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<uint8_t>(value >> shift));
}

/// A PNG of 8-bit RGB around a zlib stream.
inline Bytes png_of_stream(int width, int height, const Bytes& stream) {
  Bytes file = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
  const auto chunk = [&file](const std::string& type, const Bytes& data) {
    append_big_endian(file, static_cast<uint32_t>(data.size()));
    Bytes body = bytes_of_text(type);
    append(body, data);
    uint32_t crc = ~0U;
    for (const uint8_t byte : body) {
      crc ^= byte;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
    }
    append(file, body);
    append_big_endian(file, ~crc);
  };
  Bytes header;
  append_big_endian(header, static_cast<uint32_t>(width));
  append_big_endian(header, static_cast<uint32_t>(height));
  append(header, std::array<uint8_t, 5>{8, 2, 0, 0, 0});  // 8 bits, RGB
  chunk("IHDR", header);
  chunk("IDAT", stream);
  chunk("IEND", {});
  return file;
}

/// A PNG; its zlib stream is stored, not compressed. Up to 64 KiB.
inline Bytes png(int width, int height, const Bytes& rgb) {
  Bytes raw;
  const size_t row = static_cast<size_t>(width) * 3;
  for (size_t y = 0; y < static_cast<size_t>(height); ++y) {
    raw.push_back(0);  // no filter
    append(raw, std::span(rgb).subspan(y * row, row));
  }
  const auto length = static_cast<uint16_t>(raw.size());
  Bytes stream = {0x78,
                  0x01,
                  0x01,
                  static_cast<uint8_t>(length),
                  static_cast<uint8_t>(length >> 8),
                  static_cast<uint8_t>(~length),
                  static_cast<uint8_t>(~length >> 8)};
  append(stream, raw);
  uint32_t a = 1, b = 0;  // Adler-32
  for (const uint8_t byte : raw) {
    a = (a + byte) % 65521;
    b = (b + a) % 65521;
  }
  append_big_endian(stream, b << 16 | a);
  return png_of_stream(width, height, stream);
}

inline Bytes plain_png(int width, int height, std::array<uint8_t, 3> colour) {
  Bytes rgb;
  for (int i = 0; i < width * height; ++i) append(rgb, colour);
  return png(width, height, rgb);
}

/// A JPEG of 8 x 8 pixels, all of grey 123, made by Pillow.
inline Bytes grey_jpeg() {
  return {
      0xFF, 0xD8, 0xFF, 0xE0, 0x00, 0x10, 0x4A, 0x46, 0x49, 0x46, 0x00, 0x01, 0x01, 0x00, 0x00, 0x01, 0x00, 0x01,
      0x00, 0x00, 0xFF, 0xDB, 0x00, 0x43, 0x00, 0x08, 0x06, 0x06, 0x07, 0x06, 0x05, 0x08, 0x07, 0x07, 0x07, 0x09,
      0x09, 0x08, 0x0A, 0x0C, 0x14, 0x0D, 0x0C, 0x0B, 0x0B, 0x0C, 0x19, 0x12, 0x13, 0x0F, 0x14, 0x1D, 0x1A, 0x1F,
      0x1E, 0x1D, 0x1A, 0x1C, 0x1C, 0x20, 0x24, 0x2E, 0x27, 0x20, 0x22, 0x2C, 0x23, 0x1C, 0x1C, 0x28, 0x37, 0x29,
      0x2C, 0x30, 0x31, 0x34, 0x34, 0x34, 0x1F, 0x27, 0x39, 0x3D, 0x38, 0x32, 0x3C, 0x2E, 0x33, 0x34, 0x32, 0xFF,
      0xC0, 0x00, 0x0B, 0x08, 0x00, 0x08, 0x00, 0x08, 0x01, 0x01, 0x11, 0x00, 0xFF, 0xC4, 0x00, 0x14, 0x00, 0x01,
      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, 0xFF, 0xC4,
      0x00, 0x14, 0x10, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
      0x00, 0x00, 0xFF, 0xDA, 0x00, 0x08, 0x01, 0x01, 0x00, 0x00, 0x3F, 0x00, 0x27, 0xFF, 0xD9,
  };
}

struct FileToPack {
  std::string name;
  Bytes content;
};

/// Writes a tar, compressed when the name ends in .gz.
inline void write_tar(const std::filesystem::path& path, const std::vector<FileToPack>& files) {
  archive* tar = archive_write_new();
  archive_write_set_format_pax_restricted(tar);
  if (path.extension() == ".gz") archive_write_add_filter_gzip(tar);
  if (archive_write_open_filename(tar, path.c_str()) != ARCHIVE_OK) fail<IoError>("cannot write {}", path.string());
  for (const FileToPack& file : files) {
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, file.name.c_str());
    archive_entry_set_size(entry, static_cast<la_int64_t>(file.content.size()));
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_write_header(tar, entry);
    archive_write_data(tar, file.content.data(), file.content.size());
    archive_entry_free(entry);
  }
  archive_write_close(tar);
  archive_write_free(tar);
}

/// One CIFAR-10 record whose planes hold red, green and blue everywhere, but for pixel 1, which is
/// one more.
inline Bytes cifar_record(uint8_t label, uint8_t red, uint8_t green, uint8_t blue) {
  Bytes record = {label};
  for (const uint8_t value : {red, green, blue}) {
    record.insert(record.end(), cifar_plane_bytes, value);
    ++record[record.size() - cifar_plane_bytes + 1];
  }
  return record;
}

inline Bytes cifar_batch(const std::vector<uint8_t>& labels) {
  Bytes batch;
  for (size_t i = 0; i < labels.size(); ++i) {
    const Bytes record = cifar_record(labels[i], static_cast<uint8_t>(i), static_cast<uint8_t>(100 + i), 200);
    append(batch, record);
  }
  return batch;
}

/// The message of the error of type E that `action` throws; "" when it throws nothing, so that a
/// test can look into it with HasSubstr. Other exceptions pass through.
template <class E>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

}  // namespace nibblenet::testing
