#include "tools/study/folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>

#include "engine/io/atomic_file.h"
#include "engine/io/file_content.h"
#include "engine/io/safetensors_header.h"

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* setup_file = "sweep.json";
constexpr const char* results_file = "results.jsonl";
constexpr const char* float_right_file = "float_right.safetensors";
/// Far above the length of any sweep's row, which has some kilobytes.
constexpr uintmax_t largest_text = 256 << 20;

void write_all(const FileDescriptor& file, std::string_view text, const fs::path& path) {
  while (!text.empty()) {
    const ssize_t written = ::write(file.get(), text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_io("write", path);
    text.remove_prefix(static_cast<size_t>(written));
  }
}

/// How a line of results.jsonl begins; the checksum of the row without it follows.
constexpr std::string_view line_start = R"({"xxh3":")";
constexpr size_t checksum_digits = 16;

std::string checksum_of_row(const std::string& row) {
  return nibblenet::checksum_of(bytes_of(std::span<const char>(row)));
}

std::string line_of(const std::string& row) {
  return fmt::format("{}{}\",{}\n", line_start, checksum_of_row(row), row.substr(1));
}

/// The row of a line; those of older programs have no checksum. Throws FormatError when it does not
/// fit.
json parse_line(const std::string& line) {
  json row = json::parse(line);
  if (row.erase("xxh3") == 0) return row;
  const size_t begin = line_start.size() + checksum_digits + 2;  // behind the quote and the comma
  if (!line.starts_with(line_start) || line.size() < begin ||
      line.substr(line_start.size(), checksum_digits) != checksum_of_row("{" + line.substr(begin)))
    fail<FormatError>("its checksum does not fit");
  return row;
}

/// A setting that rows of one folder share, and how a command asks for the folder's.
struct Setting {
  const char* key;
  const char* what;
};
constexpr std::array<Setting, 11> settings = {{{"model_checksum", "another model"},
                                               {"split", "another --split"},
                                               {"images", "another --limit"},
                                               {"data_checksum", "other images"},
                                               {"image_size", "another image size"},
                                               {"device", "another --device"},
                                               {"precision", "another --precision"},
                                               {"threads", "another --threads"},
                                               {"batch", "another --batch"},
                                               {"validation_images", "another number of images by --validation"},
                                               {"validation_checksum", "other validation images"}}};

std::string shown(const json& document, const Setting& setting) {
  const std::string key = setting.key;
  if (key == "model_checksum") return document.at("model").get<std::string>();
  if (key == "data_checksum") return document.at("data").get<std::string>();
  const json& value = document.at(key);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

std::string read_text_file(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return {};
  if (!fs::is_regular_file(path, error)) fail<IoError>("{} is no ordinary file; choose another --out", path.string());
  if (fs::file_size(path, error) > largest_text)
    fail<FormatError>("{} is larger than any sweep's; choose another --out", path.string());
  std::ifstream file(path, std::ios::binary);
  if (!file) fail_io("read", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_text_file(const fs::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  file.commit();
}

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SweepSetup, model, model_checksum, data, data_description, data_checksum, split,
                                   images, batch, image_size, device, threads, precision, weights, row_groups,
                                   channel_groups, validation_images, validation_checksum)

namespace {

/// A sweep.json. Those of older programs have no validation.
json parse_setup(const std::string& text) {
  json setup = json::parse(text);
  const json defaults = SweepSetup();
  for (const char* newer : {"validation_images", "validation_checksum"})
    if (setup.is_object() && !setup.contains(newer)) setup[newer] = defaults.at(newer);
  return setup;
}

}  // namespace

SweepSetup read_setup(const fs::path& folder) {
  const fs::path file = folder / setup_file;
  try {
    return parse_setup(read_text_file(file)).get<SweepSetup>();
  } catch (const json::exception&) {
    fail<FormatError>("{} is missing or damaged: remove the folder, and measure again", file.string());
  }
}

std::string checksum_of(const StateDict& model) {
  std::string sums;
  for (const Parameter& parameter : model.parameters)
    sums += fmt::format("{} {} {}\n", parameter.name, nibblenet::to_string(parameter.shape()),
                        nibblenet::checksum_of(bytes_of(parameter.values().view().span())));
  return nibblenet::checksum_of(bytes_of(std::span<const char>(sums)));
}

std::string checksum_of(const Dataset& dataset) {
  std::string sums = nibblenet::checksum_of(dataset.pixels) + nibblenet::checksum_of(dataset.labels);
  for (const Dataset::Image& image : dataset.images) sums += fmt::format(" {}x{}", image.width, image.height);
  return nibblenet::checksum_of(bytes_of(std::span<const char>(sums)));
}

std::string checksum_of_program() { return nibblenet::checksum_of(InputFile("/proc/self/exe").read_all().bytes()); }

SweepFolder::SweepFolder(fs::path path, const SweepSetup& setup) : path_(std::move(path)) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (!fs::is_directory(path_)) fail_io("create the folder", path_, error ? error.value() : ENOTDIR);
  lock_ = FileDescriptor(open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock_.is_open()) fail_io("open", path_);
  if (flock(lock_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    fail<UsageError>("{}: another sweep is at work in this folder; wait for it or choose another --out",
                     path_.string());
  check_setup(setup);
  std::error_code none;
  fs::remove(path_ / passing_model, none);  // of a run that was killed
  read_rows(setup);
  const fs::path results = path_ / results_file;
  results_ = FileDescriptor(open(results.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!results_.is_open()) fail_io("write", results);
}

void SweepFolder::check_setup(const SweepSetup& setup) {
  const fs::path file = path_ / setup_file;
  json wanted = setup;
  wanted["format"] = "nibblenet-sweep";
  wanted["version"] = 1;
  const std::string text = read_text_file(file);
  if (text.empty()) {
    if (!read_text_file(path_ / results_file).empty())
      fail<UsageError>("{} holds a {} but no {} that says what it was measured with; choose another --out or remove it",
                       path_.string(), results_file, setup_file);
    write_text_file(file, wanted.dump(2) + "\n");
    setup_ = wanted;
    return;
  }
  try {
    setup_ = parse_setup(text);
    if (setup_.at("format") != wanted.at("format") || setup_.at("version") != wanted.at("version"))
      fail<FormatError>("{} is of another format; choose another --out", file.string());
    for (const Setting& setting : settings) {
      if (setup_.at(setting.key) == wanted.at(setting.key)) continue;
      fail<UsageError>("{} holds a sweep of {} ({}, not {}): choose another --out, or ask for the same", path_.string(),
                       setting.what, shown(setup_, setting), shown(wanted, setting));
    }
    json same = setup_;  // of the texts, only the two paths and the description may differ
    for (const char* key : {"model", "data", "data_description"}) {
      if (!setup_.at(key).is_string()) fail<FormatError>("{}: {} is no text", file.string(), key);
      same[key] = wanted.at(key);
    }
    if (same != wanted) fail<FormatError>("{} does not fit its model; choose another --out", file.string());
  } catch (const json::exception&) {
    fail<FormatError>("{} is damaged: choose another --out or remove the folder", file.string());
  }
}

void SweepFolder::read_rows(const SweepSetup& setup) {
  const fs::path file = path_ / results_file;
  const std::string text = read_text_file(file);
  std::string kept;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const std::string line = text.substr(begin, end == std::string::npos ? end : end - begin);
    begin = end == std::string::npos ? text.size() : end + 1;
    ++number;
    try {
      if (end == std::string::npos) fail<FormatError>("cut short");
      Row row = row_of(parse_line(line));
      const int64_t validation_images = row.validation ? row.validation->images : 0;
      if (row.images != setup.images || validation_images != setup.validation_images || find(row.scheme) != nullptr)
        fail<FormatError>("of other images, or twice");
      kept += line + '\n';
      rows_.push_back(std::move(row));
    } catch (const json::exception&) {
      damaged_lines_.push_back(number);
    } catch (const FormatError&) {
      damaged_lines_.push_back(number);
    }
  }
  if (!damaged_lines_.empty()) write_text_file(file, kept);
}

json SweepFolder::setup() const {
  json told = setup_;
  for (const char* key : {"model", "data"}) {
    const fs::path path = fs::path(told.at(key).get<std::string>() + "/").lexically_normal();  // ends in "/", once
    told[key] = path.parent_path().filename().string();
  }
  return told;
}

const Row* SweepFolder::find(std::string_view scheme) const {
  const auto found = std::ranges::find(rows_, scheme, &Row::scheme);
  return found == rows_.end() ? nullptr : &*found;
}

void SweepFolder::append(const json& row) {
  const fs::path file = path_ / results_file;
  rows_.push_back(row_of(row));
  write_all(results_, line_of(row.dump()), file);
  if (fdatasync(results_.get()) != 0) fail_io("write", file);
}

std::optional<std::vector<uint8_t>> SweepFolder::float_right() const {
  const fs::path path = path_ / float_right_file;
  if (std::error_code error; !fs::exists(path, error)) return std::nullopt;
  try {
    const SafetensorsFile file(path);
    const TensorEntry& entry = file.at("right");
    const auto images = setup_.at("images").get<int64_t>();
    if (file.verify() == 0 || entry.dtype != DType::u8 || entry.sizes != std::vector<int64_t>{images})
      return std::nullopt;
    return std::vector<uint8_t>(entry.bytes.begin(), entry.bytes.end());
  } catch (const FormatError&) {
    return std::nullopt;
  }
}

void SweepFolder::save_float_right(const std::vector<uint8_t>& right) const {
  write_safetensors(path_ / float_right_file,
                    {{"right", DType::u8, {static_cast<int64_t>(right.size())}, bytes_of(std::span(right))}}, {});
}

}  // namespace nibblenet::tools
