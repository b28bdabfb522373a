#pragma once

#include <CLI/CLI.hpp>

#include "training/recipe.h"

namespace nibblenet::tools {

/// Adds finetune's options of a training recipe to a program.
void add_recipe_options(CLI::App& app, RecipeOptions& recipe);

/// Throws UsageError for recipe options that do not go together with others that were given.
void check_recipe_options(const CLI::App& app);

}  // namespace nibblenet::tools
