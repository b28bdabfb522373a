#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/io/dataset.h"
#include "engine/io/state_dict.h"

namespace nibblenet {

/// The names of a model's classes, in label order: from its metadata, else CIFAR-10's where there
/// are ten classes, else their numbers. Throws FormatError when the metadata does not list
/// `classes` names.
std::vector<std::string> class_names(const std::map<std::string, std::string>& metadata, int64_t classes);

/// The names as a JSON list: the value of class_names_key in a model's metadata.
std::string class_names_text(const std::vector<std::string>& names);

/// Whether two lists name the same classes in the same order. Case, spaces, hyphens and underscores
/// do not count, nor do the usual synonyms (automobile, car; airplane, aeroplane, plane).
bool same_classes(const std::vector<std::string>& a, const std::vector<std::string>& b);

/// Replaces a data set's labels and list of classes by the model's. Classes that have images are
/// matched by name. Labels keep their position where names do not match and the model has as many
/// classes as the data: for a model whose metadata has no names, and for the stand-in when it was
/// `asked_for`. Returns one line that says what was matched, or "" when the lists are equal. Throws
/// UsageError that names both lists when they do not fit.
std::string match_classes(Dataset& data, const StateDict& model, bool asked_for = true);
/// The same for a model of which only the metadata and the number of classes are left.
std::string match_classes(Dataset& data, const std::map<std::string, std::string>& metadata, int64_t classes,
                          bool asked_for);

}  // namespace nibblenet
