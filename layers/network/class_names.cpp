#include "layers/network/class_names.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "engine/io/json.h"
#include "engine/io/safetensors_header.h"
#include "layers/network/network_spec.h"

namespace nibblenet {
namespace {

std::vector<std::string> parse(const std::string& text, int64_t classes) {
  const nlohmann::json list = nlohmann::json::parse(text, nullptr, false);
  const bool texts = list.is_array() && std::ranges::all_of(list, [](const auto& name) { return name.is_string(); });
  if (!texts || static_cast<int64_t>(list.size()) != classes)
    fail<FormatError>("the model's metadata should list the names of its {} classes under '{}', and does not", classes,
                      class_names_key);
  return list.get<std::vector<std::string>>();
}

/// A folder's name, which may be any bytes, as a model's metadata has it.
std::string as_stored(const std::string& name) {
  return nlohmann::json::parse(class_names_text({name})).at(0).get<std::string>();
}

/// Ways to read a name, from the strictest on.
enum class NameReading : uint8_t { exact, folded, synonyms };

std::string read_as(NameReading reading, const std::string& name) {
  if (reading == NameReading::exact) return name;
  std::string folded;
  for (const char c : name)
    if (c != ' ' && c != '_' && c != '-') folded += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (reading == NameReading::folded) return folded;
  if (folded == "car") return "automobile";
  return folded == "plane" || folded == "aeroplane" ? "airplane" : folded;
}

/// Index of `name` among the names, by the strictest reading that matches exactly one.
std::optional<size_t> place_of(const std::string& name, const std::vector<std::string>& names) {
  for (const NameReading reading : {NameReading::exact, NameReading::folded, NameReading::synonyms}) {
    const auto is_it = [&, wanted = read_as(reading, name)](const std::string& each) {
      return read_as(reading, each) == wanted;
    };
    if (std::ranges::count_if(names, is_it) == 1)
      return static_cast<size_t>(std::ranges::find_if(names, is_it) - names.begin());
  }
  return std::nullopt;
}

std::string list_of(const std::vector<std::string>& names) {
  constexpr size_t most_shown = 20;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), most_shown); ++i) text += (i == 0 ? "" : ", ") + in_quotes(names[i]);
  return names.size() > most_shown ? fmt::format("{} and {} more", text, names.size() - most_shown) : text;
}

/// The model's label of each class of the data, and the classes that have no counterpart.
struct Match {
  std::vector<size_t> labels;        ///< the model's label of each class of the data; 0 for one without images
  std::vector<std::string> unknown;  ///< classes with images that the model lacks, or that another class took
  std::vector<std::string> twice;    ///< of the model, that more than one class of the data means
  std::vector<std::string> renamed;  ///< "'car' is 'automobile'"
  std::vector<std::string> absent;   ///< classes of the model without images
  std::vector<bool> taken;           ///< whether a class of the model has one of the data
  bool moved = false;                ///< at least one label changes
};

Match match(const Dataset& data, const std::vector<std::string>& model) {
  std::vector<bool> used(data.classes.size());
  for (const uint8_t label : data.labels) used.at(label) = true;
  Match result{.taken = std::vector<bool>(model.size())};
  result.labels.resize(data.classes.size());
  for (size_t i = 0; i < data.classes.size(); ++i) {
    if (!used[i]) continue;
    const std::string name = as_stored(data.classes[i]);
    const std::optional<size_t> place = place_of(name, model);
    if (place && result.taken[*place]) result.twice.push_back(model[*place]);
    if (!place || result.taken[*place] || *place > std::numeric_limits<uint8_t>::max()) {
      result.unknown.push_back(name);
      continue;
    }
    result.taken[*place] = true;
    result.labels[i] = *place;
    result.moved = result.moved || *place != i;
    if (model[*place] != name) result.renamed.push_back(in_quotes(name) + " is " + in_quotes(model[*place]));
  }
  for (size_t i = 0; i < model.size(); ++i)
    if (!result.taken[i]) result.absent.push_back(model[i]);
  return result;
}

std::string sentence(const Match& match) {
  std::string text;
  if (match.moved) text = "labels follow the model's list, which is not in the data's order";
  for (const std::string& each : match.renamed) text += (text.empty() ? "" : "; ") + each;
  if (!match.absent.empty()) text += (text.empty() ? "" : "; ") + ("there are no images of " + list_of(match.absent));
  return text;
}

std::string standin_refusal(const std::vector<std::string>& known) {
  return fmt::format(
      "there are no images but the offline stand-in's, and the model knows {}: give images with --data PATH or "
      "NIBBLENET_DATA; to use the stand-in all the same, name its path",
      list_of(known));
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
  // The names are those of folders, which may hold bytes that are not UTF-8.
  return nlohmann::json(names).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool same_classes(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  return std::ranges::equal(a, b, [](const std::string& x, const std::string& y) {
    return read_as(NameReading::synonyms, x) == read_as(NameReading::synonyms, y);
  });
}

std::string match_classes(Dataset& data, const StateDict& model, bool asked_for) {
  return match_classes(data, model.metadata, class_count(model), asked_for);
}

std::string match_classes(Dataset& data, const std::map<std::string, std::string>& metadata, int64_t classes,
                          bool asked_for) {
  const bool named = metadata.contains(class_names_key);
  const std::vector<std::string> known = class_names(metadata, classes);
  const Match found = match(data, known);
  if (found.unknown.empty()) {
    for (uint8_t& label : data.labels) label = static_cast<uint8_t>(found.labels[label]);
    data.classes = known;
    return sentence(found);
  }
  const bool same_count = static_cast<int64_t>(data.classes.size()) == classes;
  if (named && data.stand_in() && !asked_for) throw UsageError(standin_refusal(known));
  if (same_count && data.stand_in() && named)
    return "the stand-in's are not the model's: labels are taken by position, and accuracy means nothing";
  // CIFAR-10's names are a guess where the model has none. Half of them found: the guess is right.
  const bool guessed_right = 2 * std::ranges::count(found.taken, true) >= classes;
  if (same_count && !named && !guessed_right) return "the model does not name its own: labels are taken by position";
  if (!named && !guessed_right)
    fail<UsageError>("the model tells {} classes apart and does not name them, the data has {}: {}", classes,
                     data.classes.size(), list_of(data.classes));
  const std::string lists =
      fmt::format("classes of the model{}: {}; of the data: {}", named ? "" : " (CIFAR-10's, since it names none)",
                  list_of(known), list_of(data.classes));
  if (!found.twice.empty())
    fail<UsageError>("the data has more than one folder for {}; {}; put the pictures of a class into one folder",
                     list_of(found.twice), lists);
  fail<UsageError>(
      "the data has {}, which the model does not know or knows by another name; {}; rename the folders or give other "
      "--data",
      list_of(found.unknown), lists);
}

}  // namespace nibblenet
