#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace nibblenet {

/// Called while bytes arrive, with what is there so far and what is expected. May throw to cancel.
using DownloadProgress = std::function<void(int64_t received, int64_t expected)>;

/// The checksum that a download is compared with.
enum class Digest : uint8_t { md5, sha256 };

/// What a file has to have: the lower-case hexadecimal digits of its digest, or the first few of
/// them.
struct Checksum {
  Digest kind;
  std::string_view hex;
};

/// Fetches `url` into the file `to`, unless that already has the right content. Bytes gather in
/// `to` + ".part", which a later call resumes; only a file with the expected length and checksum is
/// renamed to `to`. (Publishers often give MD5, or few digits: that guards against damage, HTTPS
/// against malice.) Never takes more than `expected_bytes`. Throws IoError when the network or the
/// disk fails (connecting for 8 s or a transfer that stands still for 30 s counts as failure),
/// FormatError when the content is not the expected one.
void download(const std::string& url, const std::filesystem::path& to, const Checksum& expected, int64_t expected_bytes,
              const DownloadProgress& progress = {});

/// CIFAR-10's official binary version in `folder`, downloaded (170 MB) unless it is there already.
/// Returns the path of the archive, which load_dataset reads as it is. Errors as for download.
std::filesystem::path obtain_cifar10(const std::filesystem::path& folder, const DownloadProgress& progress = {});

/// Lower-case hexadecimal digest of a file's content. Throws IoError.
std::string digest_of_file(const std::filesystem::path& path, Digest kind);

}  // namespace nibblenet
