#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/atomic_file.h"
#include "engine/io/json.h"
#include "training/compression/sensitivity.h"

namespace nibblenet::tools {

/// The choices that pack measured for a target, in a JSON file that is written anew for each: a run
/// that is stopped or killed leaves them to the next one, and so does one with another target.
class MeasurementFile {
 public:
  /// What the measurements depend on, beside weight and candidate: its name, like "model", and what
  /// identifies it.
  using Facts = std::vector<std::pair<std::string, std::string>>;

  /// Claims `path` and reads it if it is there. Throws UsageError when it has other facts,
  /// FormatError when it is no such file, IoError.
  MeasurementFile(std::filesystem::path path, const Facts& facts);
  MeasurementFile(const MeasurementFile&) = delete;
  MeasurementFile& operator=(const MeasurementFile&) = delete;

  ChoiceRecord& record() { return record_; }
  /// How many choices it held at the start.
  size_t found() const { return found_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  void append(const ChoiceRecord::Entry& entry);

  std::filesystem::path path_;
  FileClaim claim_;
  nlohmann::json document_;
  size_t found_ = 0;
  ChoiceRecord record_;
};

}  // namespace nibblenet::tools
