#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "tools/training/packing.h"

namespace nibblenet::tools {

/// Flags of `pack` as one row of a sweep: "pack --bits 3 --calibrated". `--calibrated` stands for
/// the calibration that the sweep was given.
struct Recipe {
  std::string text;  ///< words, one space between them
  friend bool operator==(const Recipe&, const Recipe&) = default;
};

/// A packed model that was made in another way, by training for instance, and is measured
/// unchanged: "model NAME".
struct ModelFile {
  std::string name;            ///< of the file, without its ending
  std::filesystem::path path;  ///< empty where a row is read back
  friend bool operator==(const ModelFile& a, const ModelFile& b) { return a.name == b.name; }
};

/// Whether a text names a recipe, and whether it names a model file.
bool names_recipe(std::string_view text);
bool names_model_file(std::string_view text);

/// Throws UsageError for flags that pack does not have or refuses.
Recipe parse_recipe(std::string_view text);
/// `path` of the file, or of no file, with a name out of "model NAME". Throws UsageError for a name
/// of other characters than letters, digits, '.', '_', '+' and '-'.
ModelFile model_file(const std::filesystem::path& path);
ModelFile parse_model_file(std::string_view text);

/// The text that names a recipe or a file.
std::string to_string(const Recipe& recipe);
std::string to_string(const ModelFile& file);

/// Of the file's bytes. Throws IoError.
std::string checksum_of(const ModelFile& file);

/// The recipe's flags; with `--calibrated`, calibration.calibrated() is true and names no file that
/// exists.
PackingFlags flags_of(const Recipe& recipe);

}  // namespace nibblenet::tools
