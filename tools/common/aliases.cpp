#include "tools/common/aliases.h"

#include <fmt/core.h>

#include <algorithm>
#include <set>

#include "engine/core/error.h"

namespace nibblenet::tools {
namespace {

struct Renamed {
  std::string old, now;
};
const std::vector<Renamed> flags = {{"--target-rest", "--target-file"},
                                    {"--target-size", "--target-file"},
                                    {"--refinements", "--passes"},
                                    {"--units", "--channels"}};
const std::vector<Renamed> keys = {{"rest", "file"},
                                   {"rest_bits_per_weight", "file_bits_per_weight"},
                                   {"rest_bytes", "file_bytes"},
                                   {"compressed_rest", "compressed_file"},
                                   {"compensation", "gptq"},
                                   {"units", "channels"},
                                   {"yardstick", "baseline"}};
const std::vector<Renamed> columns = {
    {"rest_bytes", "file_bytes"}, {"compressed_rest_bytes", "compressed_file_bytes"}, {"front_rest", "front_file"}};
const std::vector<Renamed> plots = {{"accuracy_rest", "accuracy_file"}, {"loss_rest", "loss_file"}};

struct RenamedValue {
  std::string flag, old, now;
};
const std::vector<RenamedValue> values = {{"--preset", "seed", "notebooks"}, {"--rounding", "compensated", "gptq"}};

/// "--flag" or "--flag=value".
bool names(const std::string& argument, const std::string& flag) {
  return argument == flag || argument.starts_with(flag + "=");
}

void say(const CLI::App& app, const std::string& old, const std::string& now) {
  static std::set<std::string> said;
  if (said.insert(old).second)
    fmt::print(stderr, "{}: {} is now {}; 0.3 drops the old name\n", app.get_name(), old, now);
}

}  // namespace

void take_old_names(const CLI::App& app, std::vector<std::string>& arguments) {
  const std::vector<std::string> given = arguments;
  const auto has = [&](const std::string& flag) { return app.get_option_no_throw(flag) != nullptr; };
  for (size_t i = 0; i < arguments.size() && given[i] != "--"; ++i) {
    for (const auto& [old, now] : flags) {
      if (!has(now) || !names(given[i], old)) continue;
      if (std::ranges::any_of(given, [&](const std::string& argument) { return names(argument, now); }))
        fail<UsageError>("{} is the old name of {}: give one of them", old, now);
      arguments[i] = now + given[i].substr(old.size());
      say(app, old, now);
    }
    for (const auto& [flag, old, now] : values) {
      const bool behind = i > 0 && given[i - 1] == flag && given[i] == old;
      if (!has(flag) || !(behind || given[i] == flag + "=" + old)) continue;
      arguments[i] = behind ? now : flag + "=" + now;
      say(app, flag + " " + old, flag + " " + now);
    }
  }
}

void add_both_names(nlohmann::json& document) {
  if (document.is_object())
    for (const auto& [old, now] : keys) {
      if (document.contains(old) == document.contains(now)) continue;
      const nlohmann::json value = document.at(document.contains(now) ? now : old);
      if (value.is_string() && now != "baseline") continue;  // a path, or a model's metadata
      document[document.contains(now) ? old : now] = value;
    }
  for (nlohmann::json& each : document)
    if (each.is_structured()) add_both_names(each);
}

std::vector<std::string> names_of_column(const std::string& column) {
  const auto found = std::ranges::find(columns, column, &Renamed::now);
  return found == columns.end() ? std::vector{column} : std::vector{column, found->old};
}

void copy_to_old_plots(const std::filesystem::path& folder) {
  for (const auto& [old, now] : plots)
    for (const std::string ending : {".svg", ".png"}) {
      std::error_code missing;
      std::filesystem::copy_file(folder / (now + ending), folder / (old + ending),
                                 std::filesystem::copy_options::overwrite_existing, missing);
    }
}

}  // namespace nibblenet::tools
