#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/io/dataset.h"
#include "engine/io/state_dict.h"

namespace nibblenet::tools {

/// The names of a model's classes, in label order: from its metadata, else CIFAR-10's where there
/// are ten classes, else their numbers. Throws FormatError when the metadata does not list
/// `classes` names.
std::vector<std::string> class_names(const std::map<std::string, std::string>& metadata, int64_t classes);

/// The names as a model's metadata holds them, under class_names_key: a JSON list.
std::string class_names_text(const std::vector<std::string>& names);

/// Whether two lists name the same classes in the same order: case, spaces, hyphens, underscores
/// and the usual synonyms (automobile, car; airplane, aeroplane, plane) aside.
bool same_classes(const std::vector<std::string>& a, const std::vector<std::string>& b);

/// Makes a data set's labels those of a model, by the names of the classes that have images, and
/// its list of classes the model's. A model without names takes the data's labels by position, if
/// it has as many classes and the names are not CIFAR-10's. Returns one line for people where that
/// is more than comparing equal lists, else "". Throws UsageError that names both lists when they
/// do not fit. The stand-in is taken by position by every model of ten classes when it was
/// `asked_for`, and refused else by models whose classes it does not have.
std::string match_classes(Dataset& data, const StateDict& model, bool asked_for = true);

/// Prints the line of match_classes(), if there is one.
void print_match(const std::string& match);

/// "data_set" of a tool's JSON.
nlohmann::json data_set_json(const Dataset& data, const std::string& match);

}  // namespace nibblenet::tools
