#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/dataset.h"
#include "engine/io/json.h"
#include "engine/io/posix_file.h"
#include "engine/io/state_dict.h"
#include "tools/study/row.h"

namespace nibblenet::tools {

/// The text of a file; empty when there is no such file. Throws IoError, and FormatError for one
/// far larger than any sweep's.
std::string read_text_file(const std::filesystem::path& path);
/// Replaces a file's text: a killed run leaves the old text or the new one. Throws IoError.
void write_text_file(const std::filesystem::path& path, std::string_view text);

/// The setup that every row of a sweep was measured with. A folder's rows share one setup.
struct SweepSetup {
  std::string model;           ///< its path, for reports
  std::string model_checksum;  ///< of names, shapes and values
  std::string data;            ///< its path, for reports
  std::string data_description;
  std::string data_checksum;  ///< of pixels and labels
  std::string split;
  int64_t images = 0;
  int64_t batch = 0;
  int image_size = 0;
  std::string device;
  int threads = 0;
  std::string precision;
  int64_t weights = 0;              ///< of the model, without biases
  int64_t row_groups = 0;           ///< scales that `row` takes for it
  int64_t channel_groups = 0;       ///< and `channel`
  int64_t validation_images = 0;    ///< evaluated beside the others; 0: none
  std::string validation_checksum;  ///< of their pixels and labels; empty without them
};

/// Reads what a sweep's folder was measured with. Throws FormatError where it does not say.
SweepSetup read_setup(const std::filesystem::path& folder);

/// Checksums by which a resumed sweep knows its model and images.
std::string checksum_of(const StateDict& model);
std::string checksum_of(const Dataset& dataset);
/// Of the program that runs. Another build may round or compute rows in another
/// way.
std::string checksum_of_program();

/// A sweep's folder: sweep.json (the setup), results.jsonl (one row a scheme, appended as they
/// come) and float_right.safetensors (for every image, whether the float model had it right). A run
/// that is killed at any moment leaves its finished rows to the next one. A line cut short is
/// dropped and measured again.
class SweepFolder {
 public:
  /// Name of a packed model that is measured and then deleted. The next run deletes what a killed
  /// run left of it.
  static constexpr const char* passing_model = ".passing.safetensors";
  /// Names of what a sweep writes into its folder, beside plots and models.
  static constexpr std::array files = {"sweep.json",  "results.jsonl", "float_right.safetensors",
                                       "report.md",   "report.html",   "report.csv",
                                       "report.json", "shard.json"};

  /// Opens or creates the folder and locks it until the end. Throws UsageError when it holds a
  /// sweep with another setup or another process works in it, FormatError when sweep.json is
  /// broken, IoError.
  SweepFolder(std::filesystem::path path, const SweepSetup& setup);

  const std::filesystem::path& path() const { return path_; }
  /// The setup that the folder's first run wrote, as a report may tell it: of paths, the names.
  nlohmann::json setup() const;
  /// Finished rows in the order of the file, and the numbers of its lines that were no rows, which
  /// are dropped.
  const std::vector<Row>& rows() const { return rows_; }
  const std::vector<size_t>& damaged_lines() const { return damaged_lines_; }
  const Row* find(std::string_view scheme) const;

  /// Appends a row, which is on the disk when this returns.
  void append(const nlohmann::json& row);

  /// Nothing when there is none, or one that does not fit.
  std::optional<std::vector<uint8_t>> float_right() const;
  void save_float_right(const std::vector<uint8_t>& right) const;

 private:
  void check_setup(const SweepSetup& setup);
  void read_rows(const SweepSetup& setup);

  std::filesystem::path path_;
  nlohmann::json setup_;
  std::vector<Row> rows_;
  std::vector<size_t> damaged_lines_;
  FileDescriptor lock_;
  FileDescriptor results_;
};

}  // namespace nibblenet::tools
