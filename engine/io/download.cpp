#include "engine/io/download.h"

#include <curl/curl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <memory>
#include <system_error>
#include <vector>

#include "engine/core/error.h"
#include "engine/io/posix_file.h"

namespace nibblenet {
namespace {

namespace fs = std::filesystem;

constexpr long connect_seconds = 8;  // an offline user learns it soon
constexpr long stall_seconds = 30;
constexpr long stall_bytes_per_second = 1024;
constexpr long most_redirects = 5;

using Curl = std::unique_ptr<CURL, void (*)(CURL*)>;

std::string_view name_of(Digest kind) { return kind == Digest::md5 ? "MD5" : "SHA-256"; }

std::string reason_of(int error) { return std::generic_category().message(error); }

/// Length of a file, -1 when there is none.
int64_t length_of(const fs::path& path) {
  std::error_code error;
  const auto length = fs::file_size(path, error);
  return error ? -1 : static_cast<int64_t>(length);
}

void remove_file(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) fail<IoError>("cannot remove {}: {}", path.string(), error.message());
}

/// The target of arriving bytes. No exception may pass through libcurl, so errors wait here until
/// it returns.
struct Sink {
  const fs::path& path;
  FILE* file;
  int64_t received;  // the resumed part included
  int64_t expected;
  const DownloadProgress& progress;
  bool too_long = false;
  std::exception_ptr error = nullptr;

  bool take(const char* data, size_t size) {
    if (static_cast<int64_t>(size) > expected - received) {
      too_long = true;
      return false;
    }
    try {
      if (std::fwrite(data, 1, size, file) != size)
        fail<IoError>("cannot write {}: {}", path.string(), reason_of(errno));
      received += static_cast<int64_t>(size);
      if (progress) progress(received, expected);
      return true;
    } catch (...) {
      error = std::current_exception();
      return false;
    }
  }
};

size_t write_callback(char* data, size_t one, size_t size, void* sink) {
  return static_cast<Sink*>(sink)->take(data, one * size) ? one * size : 0;
}

enum class Transfer : uint8_t { done, cannot_resume };

template <class Value>
void set_option(CURL* curl, CURLoption option, Value value) {
  if (const CURLcode code = curl_easy_setopt(curl, option, value); code != CURLE_OK)
    fail<IoError>("this libcurl does not support an option that downloads need ({}: {})", static_cast<int>(option),
                  curl_easy_strerror(code));
}

/// Downloads the rest of `url` that `part` does not have yet, and appends it.
Transfer transfer(const std::string& url, const fs::path& part, int64_t expected, const DownloadProgress& progress) {
  static const CURLcode global = curl_global_init(CURL_GLOBAL_DEFAULT);
  const Curl curl(global == CURLE_OK ? curl_easy_init() : nullptr, curl_easy_cleanup);
  if (curl == nullptr) fail<IoError>("cannot download {}: libcurl does not start", url);

  const int64_t resumed = std::max<int64_t>(length_of(part), 0);
  StdioFile file = open_stdio(part, "ab");
  Sink sink{part, file.get(), resumed, expected, progress};
  std::array<char, CURL_ERROR_SIZE> detail{};
  set_option(curl.get(), CURLOPT_URL, url.c_str());
  set_option(curl.get(), CURLOPT_ERRORBUFFER, detail.data());
  set_option(curl.get(), CURLOPT_WRITEFUNCTION, &write_callback);
  set_option(curl.get(), CURLOPT_WRITEDATA, static_cast<void*>(&sink));
  set_option(curl.get(), CURLOPT_RESUME_FROM_LARGE, static_cast<curl_off_t>(resumed));
  set_option(curl.get(), CURLOPT_FAILONERROR, 1L);
  set_option(curl.get(), CURLOPT_FOLLOWLOCATION, 1L);
  set_option(curl.get(), CURLOPT_MAXREDIRS, most_redirects);
  set_option(curl.get(), CURLOPT_PROTOCOLS_STR, "https,http,file");
  set_option(curl.get(), CURLOPT_REDIR_PROTOCOLS_STR, "https,http");  // a server must not lead to local files
  set_option(curl.get(), CURLOPT_CONNECTTIMEOUT, connect_seconds);
  set_option(curl.get(), CURLOPT_LOW_SPEED_LIMIT, stall_bytes_per_second);
  set_option(curl.get(), CURLOPT_LOW_SPEED_TIME, stall_seconds);
  set_option(curl.get(), CURLOPT_NOSIGNAL, 1L);  // signals and threads do not go together

  const CURLcode code = curl_easy_perform(curl.get());
  if (sink.error != nullptr) std::rethrow_exception(sink.error);
  if (sink.too_long) {
    file.reset();
    remove_file(part);
    fail<FormatError>("{} has more than the expected {} bytes: not the expected file", url, expected);
  }
  if (code != CURLE_OK) {
    long status = 0;
    curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
    constexpr long range_not_satisfiable = 416;
    if (resumed > 0 &&
        (code == CURLE_RANGE_ERROR || code == CURLE_BAD_DOWNLOAD_RESUME || status == range_not_satisfiable))
      return Transfer::cannot_resume;
    fail<IoError>("cannot download {}: {}{}", url, detail[0] != '\0' ? detail.data() : curl_easy_strerror(code),
                  sink.received > 0
                      ? fmt::format(" ({} of {} bytes are kept; run again to go on)", sink.received, expected)
                      : "");
  }
  // The bytes reach the disk before the rename: a power cut must not leave half a file under `to`.
  if (std::fflush(file.get()) != 0 || fsync(fileno(file.get())) != 0)
    fail<IoError>("cannot write {}: {}", part.string(), reason_of(errno));
  return Transfer::done;
}

}  // namespace

std::string digest_of_file(const fs::path& path, Digest kind) {
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (context == nullptr ||
      EVP_DigestInit_ex(context.get(), kind == Digest::md5 ? EVP_md5() : EVP_sha256(), nullptr) != 1)
    fail<IoError>("cannot check {}: this OpenSSL has no {}", path.string(), name_of(kind));
  const StdioFile file = open_stdio(path, "rb");
  std::vector<uint8_t> block(size_t{1} << 18);
  while (const size_t got = std::fread(block.data(), 1, block.size(), file.get()))
    EVP_DigestUpdate(context.get(), block.data(), got);
  if (std::ferror(file.get()) != 0) fail<IoError>("cannot read {}: {}", path.string(), reason_of(errno));
  std::array<uint8_t, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  EVP_DigestFinal_ex(context.get(), digest.data(), &length);
  std::string text;
  for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

void download(const std::string& url, const fs::path& to, const Checksum& expected, int64_t expected_bytes,
              const DownloadProgress& progress) {
  if (length_of(to) == expected_bytes && digest_of_file(to, expected.kind).starts_with(expected.hex)) return;
  std::error_code error;
  if (to.has_parent_path()) fs::create_directories(to.parent_path(), error);
  if (error) fail<IoError>("cannot make the folder {}: {}", to.parent_path().string(), error.message());

  fs::path part = to;
  part += ".part";
  // A part that is too long, that the server cannot continue, or that leads to a wrong checksum
  // belonged to another file or version. It is worth one new start, but only one.
  bool resumed = length_of(part) > 0;
  for (;;) {
    if (length_of(part) > expected_bytes) remove_file(part);
    if (length_of(part) < expected_bytes && transfer(url, part, expected_bytes, progress) == Transfer::cannot_resume) {
      remove_file(part);
      resumed = false;
      continue;
    }
    const int64_t length = length_of(part);
    if (length < expected_bytes)
      fail<FormatError>("{} ended after {} of {} bytes (they are kept; run again to go on)", url, length,
                        expected_bytes);
    const std::string digest = digest_of_file(part, expected.kind);
    if (digest.starts_with(expected.hex)) break;
    remove_file(part);
    if (!resumed)
      fail<FormatError>("{} is not the expected file: its {} is {}, expected {}", url, name_of(expected.kind), digest,
                        expected.hex);
    resumed = false;
  }
  fs::rename(part, to, error);
  if (error) fail<IoError>("cannot rename {} to {}: {}", part.string(), to.string(), error.message());
}

fs::path obtain_cifar10(const fs::path& folder, const DownloadProgress& progress) {
  constexpr int64_t archive_bytes = 170'052'171;
  fs::path archive = folder / "cifar-10-binary.tar.gz";
  download("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", archive,
           {Digest::md5, "c32a1d4ab5d03f1284b67883e8d87530"}, archive_bytes, progress);
  return archive;
}

}  // namespace nibblenet
