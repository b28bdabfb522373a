#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace nibblenet {

/// Called while bytes arrive, with the bytes so far and the expected ones. May throw to cancel.
using DownloadProgress = std::function<void(int64_t received, int64_t expected)>;

/// The checksum that a download is compared with.
enum class Digest : uint8_t { md5, sha256 };

/// The expected digest of a file.
struct Checksum {
  Digest kind;
  std::string_view hex;  ///< its lower-case hexadecimal digits, or the first few of them
};

/// Downloads `url` into the file `to`, unless that has the right content already. Bytes gather in
/// `to` + ".part", which a later call resumes; a file with the expected length and checksum is then
/// renamed to `to`. Never takes more than `expected_bytes`. Throws IoError when the network or the
/// disk fails: connecting may take 8 s, and a transfer may stall for 30 s. Throws FormatError when
/// the content is not the expected one. (Publishers often give MD5, or few digits: these guard
/// against damage, HTTPS against malice.)
void download(const std::string& url, const std::filesystem::path& to, const Checksum& expected, int64_t expected_bytes,
              const DownloadProgress& progress = {});

/// Downloads CIFAR-10's official binary version (170 MB) into `folder`, unless it is there. Returns
/// the path of the archive, which load_dataset() reads. Throws like download().
std::filesystem::path obtain_cifar10(const std::filesystem::path& folder, const DownloadProgress& progress = {});

/// The digest of a file's content in lower-case hexadecimal digits. Throws IoError.
std::string digest_of_file(const std::filesystem::path& path, Digest kind);

}  // namespace nibblenet
