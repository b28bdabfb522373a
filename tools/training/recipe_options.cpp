#include "tools/training/recipe_options.h"

#include "engine/core/error.h"

namespace nibblenet::tools {

void add_recipe_options(CLI::App& app, RecipeOptions& recipe) {
  app.add_option("--ema", recipe.ema,
                 "Average the weights while they train, with this decay, like 0.999; the averages are measured after "
                 "every epoch, and are the model; 0: no averages")
      ->type_name("DECAY")
      ->capture_default_str();
}

void check_recipe_options(const CLI::App& app) {
  const auto given = [&](const char* name) { return app.get_option(name)->count() > 0; };
  if (given("--ema") && given("--quantize"))
    throw UsageError("--ema averages float weights: not with --quantize; train in float first, then pack");
}

}  // namespace nibblenet::tools
