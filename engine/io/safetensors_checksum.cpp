#include <xxhash.h>

#include <algorithm>
#include <array>

#include "engine/io/safetensors_header.h"

namespace nibblenet {
namespace {

/// Metadata keys that decide how a file is read.
constexpr std::array<std::string_view, 7> own_keys = {format_key, version_key,        header_checksum_key, "image_size",
                                                      "classes",  "training_options", "training_position"};
/// Prefixes of metadata keys, before the colon: "scheme:features.0.weight".
constexpr std::array<std::string_view, 4> own_prefixes = {"xxh3", "scheme", "shape", "compression"};

/// Whether inserting, removing or replacing one character turns `text` into `word`.
bool one_edit_apart(std::string_view text, std::string_view word) {
  if (text.size() > word.size()) std::swap(text, word);
  if (word.size() - text.size() > 1 || text == word) return false;
  const auto same = static_cast<size_t>(std::ranges::mismatch(text, word).in1 - text.begin());
  return text.substr(same + (text.size() == word.size() ? 1 : 0)) == word.substr(same + 1);
}

/// The key or prefix of ours that `key` misspells; empty when there is none.
std::string_view misspelt(std::string_view key) {
  for (const std::string_view own : own_keys)
    if (one_edit_apart(key, own)) return own;
  const size_t colon = key.find(':');
  for (const std::string_view own : own_prefixes) {
    if (key.starts_with(own) && colon != own.size()) return own;
    if (colon != key.npos && one_edit_apart(key.substr(0, colon), own)) return own;
  }
  return {};
}

}  // namespace

std::string checksum_of(std::span<const uint8_t> bytes) {
  // XXH3 takes no null pointer, which an empty span may hold.
  return fmt::format("{:016x}", XXH3_64bits(bytes.empty() ? "" : static_cast<const void*>(bytes.data()), bytes.size()));
}

void check_header(std::span<const uint8_t> header, const std::string& file) {
  const std::string_view whole(reinterpret_cast<const char*>(header.data()), header.size());
  if (!whole.substr(safetensors_prefix).starts_with(checked_start)) return;
  std::string text(whole);
  const size_t digits = safetensors_prefix + checked_start.size();
  const std::string expected = text.substr(digits, checksum_digits);
  text.replace(digits, expected.size(), expected.size(), '0');
  if (const std::string actual = checksum_of(bytes_of(std::span<const char>(text))); actual != expected)
    fail<FormatError>("{}: checksum of its header: expected {}, got {}; the file is damaged, fetch or write it again",
                      file, in_quotes(expected), actual);
}

std::string_view value_of(const std::map<std::string, std::string>& metadata, std::string_view key) {
  const auto found = metadata.find(std::string(key));
  return found == metadata.end() ? std::string_view() : std::string_view(found->second);
}

void check_keys(const std::map<std::string, std::string>& metadata, bool checked, const std::string& file) {
  const bool ours = value_of(metadata, format_key).starts_with(format_prefix);
  if (!checked && metadata.contains(std::string(header_checksum_key)))
    fail<FormatError>("{}: its header was written again by another program; leave out its metadata {} and {}…", file,
                      header_checksum_key, checksum_prefix);
  if (!checked && ours && value_of(metadata, version_key) == checked_version)
    fail<FormatError>("{}: its header has no checksum; the file is damaged, fetch or write it again", file);
  if (!checked && !ours &&
      std::ranges::none_of(metadata, [](const auto& item) { return item.first.starts_with(checksum_prefix); }))
    return;
  for (const auto& [key, value] : metadata)
    if (const std::string_view meant = misspelt(key); !meant.empty())
      fail<FormatError>("{}: the metadata key {} looks like a damaged {}; fetch or write the file again", file,
                        in_quotes(key), in_quotes(meant));
}

}  // namespace nibblenet
