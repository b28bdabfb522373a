#include "tools/study/recipe.h"

#include <algorithm>

#include "engine/io/file_content.h"
#include "engine/io/safetensors_header.h"
#include "engine/quant/text.h"
#include "tools/common/aliases.h"

namespace nibblenet::tools {
namespace {

constexpr std::string_view recipe_prefix = "pack";
constexpr std::string_view model_prefix = "model ";

/// Names go into file names, tables and plots, so no character may have a meaning there.
bool is_plain(std::string_view text, std::string_view others) {
  return std::ranges::all_of(text, [&](char c) {
    const bool letter_or_digit = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    return letter_or_digit || others.find(c) != std::string_view::npos;
  });
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (const std::string_view word : split(text, ' '))
    if (!word.empty()) words.emplace_back(word);
  return words;
}

/// Flags by their old names get the new ones in `words`.
PackingFlags parse_flags(std::vector<std::string>& words, std::string_view text) {
  CLI::App app("", "pack");
  app.set_help_flag();
  PackingFlags flags;
  bool calibrated = false;
  flags.scheme.add_to(app);
  flags.calibration.add_choice_to(app);
  flags.allocation.add_to(app);
  app.add_flag("--calibrated", calibrated);
  take_old_names(app, words);
  try {
    app.parse(std::vector<std::string>(words.rbegin(), words.rend()));  // as CLI11 takes them
  } catch (const CLI::ParseError& error) {
    fail<UsageError>("'{}' is nothing that pack does: {}", text, error.what());
  }
  if (calibrated) flags.calibration.load = "the sweep's own";
  flags.validate();
  flags.allocation.compressed = flags.implies_compression();
  return flags;
}

}  // namespace

bool names_recipe(std::string_view text) {
  return text == recipe_prefix || text.starts_with(std::string(recipe_prefix) + " ");
}

bool names_model_file(std::string_view text) { return text.starts_with(model_prefix); }

Recipe parse_recipe(std::string_view text) {
  if (!names_recipe(text) || !is_plain(text, " .:=*?[]!+_-"))
    fail<UsageError>("'{}' is no recipe: expected pack and its flags, like 'pack --bits 3 --calibrated'", text);
  std::vector<std::string> words = words_of(text.substr(recipe_prefix.size()));
  parse_flags(words, text);
  Recipe recipe{std::string(recipe_prefix)};
  for (const std::string& word : words) recipe.text += " " + word;
  return recipe;
}

ModelFile model_file(const std::filesystem::path& path) {
  ModelFile file{path.stem().string(), path};
  if (file.name.empty() || !is_plain(file.name, "._+-"))
    fail<UsageError>("{}: a row is named after its file: rename it to letters, digits, '.', '_', '+' and '-'",
                     path.string());
  return file;
}

ModelFile parse_model_file(std::string_view text) {
  const std::string_view name = text.substr(std::min(model_prefix.size(), text.size()));
  if (!names_model_file(text) || name.empty() || !is_plain(name, "._+-"))
    fail<UsageError>("'{}' is no 'model NAME'", text);
  return {.name = std::string(name)};
}

std::string to_string(const Recipe& recipe) { return recipe.text; }
std::string to_string(const ModelFile& file) { return std::string(model_prefix) + file.name; }

std::string checksum_of(const ModelFile& file) {
  return nibblenet::checksum_of(InputFile(file.path).read_all().bytes());
}

PackingFlags flags_of(const Recipe& recipe) {
  std::vector<std::string> words = words_of(recipe.text.substr(recipe_prefix.size()));
  return parse_flags(words, recipe.text);
}

}  // namespace nibblenet::tools
