#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/dataset.h"
#include "engine/io/preprocess.h"
#include "engine/io/state_dict.h"
#include "kernels/backend.h"
#include "tools/common/data_search.h"
#include "tools/study/folder.h"

namespace nibblenet::tools {

/// How far a sweep has come, for a progress line.
struct SweepPosition {
  size_t scheme = 0;  ///< number of the one at work, from 1; the float model is the first
  size_t schemes = 0;
  std::string doing;  ///< "dynamic-tree:4:row", "packing dynamic-tree:4:row"
  int64_t images_done = 0;
  int64_t images = 0;  ///< of the whole sweep
};
/// Hears of the position. Return true to stop.
using OnPosition = std::function<bool(const SweepPosition&)>;

/// Everything that a sweep measures with.
struct SweepInputs {
  Backend& backend;
  const StateDict& model;  ///< float
  const Dataset& dataset;
  Preprocess preprocess;
  int64_t batch = 128;
  Precision precision = Precision::float32;  ///< of packed models; simulated ones take float32
  bool keep_models = false;                  ///< packed models stay in the folder once their length is measured
  std::function<const Calibration&()> calibration = {};  ///< for recipes; measured or read when it is first asked for
  DataSource data = {"", Unreadable::refuse};            ///< whose training images choose widths for recipes
  const Dataset* validation = nullptr;                   ///< evaluated beside `dataset`; null: none
};

/// The precision of the float model's row in a sweep: that of packed ones, but float32 beside int8.
constexpr Precision float_precision(Precision packed) {
  return packed == Precision::int8 ? Precision::float32 : packed;
}

/// Throws UsageError for a recipe that asks for a calibration where there is none or for layers
/// that the model does not have, and for schemes without one scale a channel in int8; IoError or
/// FormatError for a model that cannot be read.
void check_schemes(std::span<const SweepScheme> schemes, const StateDict& model, bool calibrated, Precision precision);

/// Measures the float model and every scheme that the folder has no row of, and appends the rows.
/// Calls `on_row` with each. Throws Interrupted when `on_position` asks to stop: the folder then
/// holds what was finished. Throws UsageError for a model file that changed since it was measured,
/// when rows of another calibration are there, and for a scheme that cannot compute in int8 where
/// that is the precision.
void run_sweep(SweepFolder& folder, const SweepInputs& inputs, std::span<const SweepScheme> schemes,
               const OnPosition& on_position, const std::function<void(const Row&)>& on_row);

/// Throws IoError when the folder's disk lacks the room for the packed models that run_sweep()
/// would write.
void check_disk(const SweepFolder& folder, const StateDict& model, std::span<const SweepScheme> schemes,
                bool keep_models);

}  // namespace nibblenet::tools
