#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace nibblenet::tools {

/// What a model's classes are called, in label order: the names in its metadata, else CIFAR-10's
/// where there are ten classes, else their numbers. Throws FormatError when the metadata's names
/// are no list of `classes` texts.
std::vector<std::string> class_names(const std::map<std::string, std::string>& metadata, int64_t classes);

/// The names as a model's metadata holds them, under class_names_key: a JSON list.
std::string class_names_text(const std::vector<std::string>& names);

}  // namespace nibblenet::tools
