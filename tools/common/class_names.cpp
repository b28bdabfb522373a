#include "tools/common/class_names.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/core/error.h"
#include "engine/io/dataset.h"
#include "engine/io/state_dict.h"

namespace nibblenet::tools {
namespace {

std::vector<std::string> parse(const std::string& text, int64_t classes) {
  const nlohmann::json list = nlohmann::json::parse(text, nullptr, false);
  const bool texts = list.is_array() && std::ranges::all_of(list, [](const auto& name) { return name.is_string(); });
  if (!texts || static_cast<int64_t>(list.size()) != classes)
    fail<FormatError>("the model's metadata should list the names of its {} classes under '{}', and does not", classes,
                      class_names_key);
  return list.get<std::vector<std::string>>();
}

}  // namespace

std::vector<std::string> class_names(const std::map<std::string, std::string>& metadata, int64_t classes) {
  if (const auto found = metadata.find(class_names_key); found != metadata.end()) return parse(found->second, classes);
  const auto& cifar = cifar10_classes();
  if (classes == static_cast<int64_t>(cifar.size())) return {cifar.begin(), cifar.end()};
  std::vector<std::string> numbers;
  for (int64_t label = 0; label < classes; ++label) numbers.push_back(std::to_string(label));
  return numbers;
}

std::string class_names_text(const std::vector<std::string>& names) {
  // Names come from folders, whose names may be any bytes.
  return nlohmann::json(names).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace nibblenet::tools
