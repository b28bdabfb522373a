#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/io/json.h"
#include "engine/quant/error.h"
#include "layers/network/evaluate.h"
#include "layers/network/network.h"
#include "tools/study/plan.h"

namespace nibblenet::tools {

/// A packed model's file once more, this one with its codes compressed.
struct CompressedFile {
  int64_t file = 0;
  double encode_seconds = 0;  ///< of processor time, all threads together: making the codes and writing it
  double decode_seconds = 0;  ///< the same, reading it
};

/// The measurements and settings that a row of results.jsonl is made from.
struct Measurement {
  std::optional<SweepScheme> scheme;  ///< nothing: the float model
  Precision precision = Precision::float32;
  Evaluation evaluation;
  std::optional<Evaluation> validation;  ///< on validation images, with --validation
  std::vector<uint8_t> float_right;      ///< for every image, whether the float model had it right
  std::vector<std::pair<std::string, QuantizationError>> errors;  ///< by layer, in the network's order
  nlohmann::json size;                            ///< eval's; null for simulated weights, which have no size
  std::optional<EstimatedSize> claimed;           ///< simulated: what the notebooks say it is
  std::optional<ValueNeed> need;                  ///< where weights of a row share a scale
  std::optional<ExponentCounts> exponent_counts;  ///< dynamic tree by row
  std::optional<CompressedFile> compressed;       ///< of recipes and model files
  std::string calibration;                        ///< what codes were chosen by; empty: none
  std::string checksum;                           ///< of a model file
  std::string program;                            ///< checksum of what measured it
  double prepare_seconds = 0;                     ///< quantizing, writing, reading back, errors
};

/// One line of results.jsonl, without its checksum and end.
nlohmann::json to_json(const Measurement& measurement);

/// For every image, whether the largest logit is its label's.
std::vector<uint8_t> right_ones(const Evaluation& evaluation);

/// Errors of a layer or of all; without a signal-to-noise ratio where nothing is lost.
struct ErrorFigures {
  std::string layer;
  double mse = 0;
  double mae = 0;
  std::optional<double> snr_db;
};

/// Sizes of a row, in bytes.
struct SizeFigures {
  EstimatedSize estimated;
  int64_t groups = 0;
  int64_t file = 0;
  ResidentSize resident;
  double bits_per_weight = 0;
};

/// A row's figures on the validation images.
struct ValidationFigures {
  int64_t images = 0;
  int64_t correct = 0;
  double accuracy = 0;
  double loss = 0;
};

/// What follows from a row's scheme: one place, for writing and for checking.
struct Naming {
  std::string scheme;
  std::string method;
  int bits = 0;             ///< 0: layers have their own
  std::string granularity;  ///< empty: float, or layers have their own
  std::string scale_sign;   ///< empty: none
};

/// A line of results.jsonl, checked. Its naming is derived from the parsed text of its scheme.
struct Row : Naming {
  nlohmann::json document;            ///< the line as it is
  std::optional<SweepScheme> parsed;  ///< nothing: the float model
  int64_t images = 0;
  int64_t correct = 0;
  double accuracy = 0;
  double loss = 0;
  int64_t only_float = 0;
  int64_t only_this = 0;
  double mcnemar_p = 1;
  std::optional<ValidationFigures> validation;  ///< with --validation
  ErrorFigures error;
  std::vector<ErrorFigures> layers;
  std::optional<SizeFigures> size;       ///< nothing: simulated
  std::optional<EstimatedSize> claimed;  ///< simulated only
  std::optional<ValueNeed> need;
  std::vector<int64_t> exponent_counts;      ///< empty: not a tree
  std::optional<CompressedFile> compressed;  ///< of recipes and model files
  std::string calibration;
  std::string checksum;
  std::string program;  ///< empty: before rows told
  double images_per_second = 0;

  bool is_float() const { return !parsed; }
  bool simulated() const { return parsed && std::holds_alternative<SimulatedScheme>(*parsed); }
  bool packed() const { return parsed && !simulated(); }
  /// All weights in one scheme; null for other rows.
  const Scheme* scheme_of_all() const { return parsed ? std::get_if<Scheme>(&*parsed) : nullptr; }
  const Recipe* recipe() const { return parsed ? std::get_if<Recipe>(&*parsed) : nullptr; }
  /// Bytes of the smallest file that was measured. Of a packed row.
  int64_t smallest_file() const { return compressed ? std::min(size->file, compressed->file) : size->file; }
};

/// Throws FormatError for a line that to_json() would not have written.
Row row_of(nlohmann::json document);

}  // namespace nibblenet::tools
