#include "tools/common/data_search.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <span>

#include "engine/io/download.h"
#include "tools/common/command_line.h"
#include "tools/common/progress.h"

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;

constexpr int64_t standin_train_images = 10'000;
constexpr int64_t standin_test_images = 2'000;
constexpr uint64_t standin_seed = 1;

bool is_archive(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.ends_with(".tar") || name.ends_with(".tar.gz") || name.ends_with(".tgz");
}

/// What load_dataset() may read in data/: the folder itself when it holds known names, then its
/// archives.
std::vector<fs::path> inside(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> archives;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.is_regular_file(error) && is_archive(entry.path())) archives.push_back(entry.path());
  std::ranges::sort(archives);
  for (const char* marker : {"data_batch_1.bin", "test_batch.bin", "data_batch_1", "test_batch", "train", "test",
                             "cifar-10-batches-bin", "cifar-10-batches-py"})
    if (fs::exists(folder / marker, error)) {
      archives.insert(archives.begin(), folder);
      break;
    }
  return archives;
}

void announce(const fs::path& path, std::string_view why) { fmt::print("data: {} ({})\n", path.string(), why); }

DataSource asked_for(const std::string& path, std::string_view by, Unreadable unreadable) {
  announce(path, by);
  return {path, unreadable};
}

}  // namespace

const char* const data_help =
    "Images: a folder or tar(.gz) with CIFAR-10's binary or Python version or train/<class>/*.jpg|png and test/…; "
    "without it "
    "NIBBLENET_DATA, else data/, else CIFAR-10 is downloaded there, else (offline) a stand-in is drawn";

Dataset DataSource::load(Split split, int64_t limit) {
  std::string problems;
  while (true) {
    try {
      Dataset data = load_dataset(path(), split, limit, unreadable_);
      if (!why_.empty()) announce(path(), why_);
      print_skipped(data);
      why_.clear();
      candidates_.resize(1);
      return data;
    } catch (const UsageError&) {
      throw;
    } catch (const Error& error) {
      if (candidates_.size() == 1 && problems.empty()) throw;
      problems += fmt::format("{}{}", problems.empty() ? "" : "; ", error.what());
      if (candidates_.size() == 1) fail<FormatError>("none of the data sets found can be read: {}", problems);
      fmt::print(stderr, "data: {} is passed over: {}\n", path().string(), error.what());
      candidates_.erase(candidates_.begin());
    }
  }
}

DataSource find_data(const std::string& given, Unreadable unreadable) {
  std::error_code error;
  if (!given.empty()) {
    if (!fs::exists(given, error)) fail<UsageError>("--data {}: no such file or folder", given);
    return asked_for(given, "--data", unreadable);
  }
  if (const char* variable = std::getenv("NIBBLENET_DATA"); variable != nullptr && *variable != '\0') {
    if (!fs::exists(variable, error)) fail<UsageError>("NIBBLENET_DATA={}: no such file or folder", variable);
    return asked_for(variable, "NIBBLENET_DATA", unreadable);
  }
  const fs::path folder = project_root() / "data";
  if (std::vector<fs::path> found = inside(folder); !found.empty())
    return {std::move(found), "found in data/", unreadable};
  try {
    Progress progress("downloading CIFAR-10", "bytes");
    return {{obtain_cifar10(folder, [&](int64_t received, int64_t expected) { progress.update(received, expected); })},
            "CIFAR-10, downloaded",
            unreadable};
  } catch (const Error& failure) {
    fmt::print(stderr, "CIFAR-10 could not be downloaded: {}\n", failure.what());
  }
  const fs::path standin = folder / "standin";
  if (!fs::exists(standin / "test_batch.bin", error))
    write_standin(standin, standin_train_images, standin_test_images, standin_seed);
  return {{standin}, "a drawn stand-in, NOT CIFAR-10: pass --data to use real images", unreadable};
}

void add_skip_option(CLI::App& app, Unreadable& unreadable) {
  app.add_flag_callback(
      "--skip-unreadable", [&unreadable] { unreadable = Unreadable::skip; },
      "Leave out the pictures of a data set that cannot be read, and say how many; without it one ends the run");
}

CLI::Option* add_split_option(CLI::App& app, std::string& split) {
  std::vector<std::string> names;
  for (const Split each : {Split::test, Split::train, Split::validation, Split::fitting})
    names.emplace_back(to_string(each));
  return add_checked(app, "--split", split, CLI::IsMember(names),
                     "test; train; or a part of the training images: validation, the tenth of each class that finetune "
                     "--validation holds out, or fitting, the others");
}

void print_skipped(const Dataset& data) {
  constexpr size_t most_named = 3;
  if (data.skipped.empty()) return;
  const std::span<const std::string> named(data.skipped.data(), std::min(most_named, data.skipped.size()));
  fmt::print(stderr, "warning: {} pictures that cannot be read are left out: {}{}\n", data.skipped.size(),
             fmt::join(named, "; "), named.size() < data.skipped.size() ? " and so on" : "");
}

void print_match(const std::string& match) {
  if (!match.empty()) fmt::print("classes: {}\n", match);
}

nlohmann::json data_set_json(const Dataset& data, const std::string& match) {
  return {{"description", data.description},
          {"stand_in", data.stand_in()},
          {"classes", data.classes},
          {"match", match.empty() ? nlohmann::json() : nlohmann::json(match)},
          {"skipped", data.skipped.size()}};
}

void print_if_standin(bool standin) {
  if (standin)
    fmt::print("made on the stand-in: drawn images, NOT CIFAR-10; give --data PATH for a result on real ones\n");
}

}  // namespace nibblenet::tools
