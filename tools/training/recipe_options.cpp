#include "tools/training/recipe_options.h"

#include "engine/core/error.h"

namespace nibblenet::tools {

void add_recipe_options(CLI::App& app, RecipeOptions& recipe) {
  app.add_option("--ema", recipe.ema,
                 "Average the weights while they train, with this decay, like 0.999; the averages are measured after "
                 "every epoch, and are the model; 0: no averages")
      ->type_name("DECAY")
      ->capture_default_str();
  app.add_option("--label-smoothing", recipe.label_smoothing,
                 "Part of each label, like 0.1, that all classes share alike; a teacher's predictions stay as they are")
      ->type_name("E")
      ->capture_default_str();
  app.add_option("--mixup", recipe.mixing.mixup,
                 "Mix every training image and its label with another's, by shares drawn from Beta(ALPHA, ALPHA), like "
                 "0.2; 0: do not")
      ->type_name("ALPHA")
      ->capture_default_str();
  app.add_option("--cutmix", recipe.mixing.cutmix,
                 "Paste a rectangle of another training image into every one, and mix the labels by area; its part is "
                 "drawn from Beta(ALPHA, ALPHA), like 1; with --mixup, a coin chooses for every image; 0: do not")
      ->type_name("ALPHA")
      ->capture_default_str();
  app.add_option("--bias-lr", recipe.bias_lr,
                 "Learning rate of biases over that of weights; their weight decay a step stays the same")
      ->type_name("FACTOR")
      ->capture_default_str();
}

void check_recipe_options(const CLI::App& app) {
  const auto given = [&](const char* name) { return app.get_option(name)->count() > 0; };
  if (given("--ema") && given("--quantize"))
    throw UsageError("--ema averages float weights: not with --quantize; train in float first, then pack");
}

}  // namespace nibblenet::tools
