#include "engine/io/download.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using namespace testing;
using ::testing::HasSubstr;

/// A file of 100,000 bytes and the folder it is downloaded from and to, by file:// URLs: never the
/// network.
class Download : public ::testing::Test {
 protected:
  Download() : content_(100'000) {
    for (size_t i = 0; i < content_.size(); ++i) content_[i] = static_cast<uint8_t>(i * i >> 5);
    write_bytes(source(), content_);
    md5_ = digest_of_file(source(), Digest::md5);
  }
  std::filesystem::path source() const { return folder_.path() / "source.bin"; }
  std::filesystem::path target() const { return folder_.path() / "new" / "target.bin"; }
  std::filesystem::path part() const { return folder_.path() / "new" / "target.bin.part"; }
  std::string url() const { return "file://" + source().string(); }
  void run(const DownloadProgress& progress = {}) const {
    download(url(), target(), {Digest::md5, md5_}, static_cast<int64_t>(content_.size()), progress);
  }
  Bytes first(size_t length) const { return {content_.begin(), content_.begin() + static_cast<ptrdiff_t>(length)}; }
  void expect_complete() const {
    EXPECT_EQ(read_bytes(target()), content_);
    EXPECT_FALSE(std::filesystem::exists(part()));
  }

  TemporaryFolder folder_;
  Bytes content_;
  std::string md5_;
};

TEST_F(Download, DigestsAreRight) {
  write_bytes(folder_.path() / "abc", bytes_of_text("abc"));
  EXPECT_EQ(digest_of_file(folder_.path() / "abc", Digest::md5), "900150983cd24fb0d6963f7d28e17f72");
  EXPECT_EQ(digest_of_file(folder_.path() / "abc", Digest::sha256),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_THROW(digest_of_file(folder_.path() / "missing", Digest::md5), IoError);
}

TEST_F(Download, FetchesOnceAndReportsProgress) {
  int64_t last = 0;
  run([&](int64_t received, int64_t expected) {
    EXPECT_GT(received, last);
    EXPECT_EQ(expected, 100'000);
    last = received;
  });
  EXPECT_EQ(last, 100'000);
  expect_complete();
  std::filesystem::remove(source());
  run();  // it is there: the source is not asked
}

TEST_F(Download, ReplacesAWrongFile) {
  write_bytes(target(), first(10));
  run();
  expect_complete();
}

TEST_F(Download, Resumes) {
  write_bytes(part(), first(60'000));
  int64_t smallest = 100'000;
  run([&](int64_t received, int64_t) { smallest = std::min(smallest, received); });
  EXPECT_GT(smallest, 60'000);
  expect_complete();
  // The part is complete; only the rename was missing.
  std::filesystem::remove(target());
  write_bytes(part(), content_);
  std::filesystem::remove(source());
  run();
  expect_complete();
}

TEST_F(Download, StartsOverWhenThePartIsOfAnotherFile) {
  for (const Bytes& wrong : {Bytes(500, 7), Bytes(100'000, 7), Bytes(100'001, 7)}) {
    std::filesystem::remove(target());
    write_bytes(part(), wrong);
    run();
    expect_complete();
  }
}

TEST_F(Download, RefusesAWrongHash) {
  content_[50'000] ^= 1;
  write_bytes(source(), content_);
  EXPECT_THAT(message_of<FormatError>([&] { run(); }), HasSubstr(md5_));
  EXPECT_FALSE(std::filesystem::exists(target()));
  EXPECT_FALSE(std::filesystem::exists(part()));
}

TEST_F(Download, KeepsATruncatedFileForLater) {
  write_bytes(source(), first(40'000));
  EXPECT_THAT(message_of<FormatError>([&] { run(); }), HasSubstr("40000 of 100000 bytes"));
  EXPECT_FALSE(std::filesystem::exists(target()));
  EXPECT_EQ(read_bytes(part()), first(40'000));
  write_bytes(source(), content_);
  run();
  expect_complete();
}

TEST_F(Download, NeverTakesMoreThanExpected) {
  Bytes more = content_;
  more.push_back(0);
  write_bytes(source(), more);
  EXPECT_THAT(message_of<FormatError>([&] { run(); }), HasSubstr("more than the expected 100000 bytes"));
  EXPECT_FALSE(std::filesystem::exists(target()));
  EXPECT_FALSE(std::filesystem::exists(part()));
}

TEST_F(Download, TellsWhatIsMissing) {
  std::filesystem::remove(source());
  EXPECT_THAT(message_of<IoError>([&] { run(); }), HasSubstr("source.bin"));
  EXPECT_THROW(download("gopher://x/y", target(), {Digest::md5, md5_}, 10), IoError);
  write_bytes(folder_.path() / "new2", Bytes{1});
  EXPECT_THROW(download(url(), folder_.path() / "new2" / "file", {Digest::md5, md5_}, 10), IoError);
}

TEST_F(Download, CancelsWhenProgressThrows) {
  EXPECT_THROW(run([](int64_t, int64_t) { throw UsageError("enough"); }), UsageError);
  EXPECT_FALSE(std::filesystem::exists(target()));
  run();
  expect_complete();
}

}  // namespace
}  // namespace nibblenet
