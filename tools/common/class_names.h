#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace nibblenet::tools {

/// The names of a model's classes, in label order: from its metadata, else CIFAR-10's where there
/// are ten classes, else their numbers. Throws FormatError when the metadata does not list
/// `classes` names.
std::vector<std::string> class_names(const std::map<std::string, std::string>& metadata, int64_t classes);

/// The names as a model's metadata holds them, under class_names_key: a JSON list.
std::string class_names_text(const std::vector<std::string>& names);

}  // namespace nibblenet::tools
