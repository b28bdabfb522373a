#include "tools/training/measurement_file.h"

#include <cmath>

#include "engine/io/file_content.h"
#include "engine/io/safetensors_header.h"
#include "tools/common/outputs.h"

namespace nibblenet::tools {
namespace {

constexpr const char* format_name = "nibblenet-measurements";
constexpr uint64_t largest_file = 64 << 20;  // a choice takes 200 bytes

nlohmann::json to_json(const ChoiceRecord::Entry& entry) {
  const MeasuredChoice& choice = entry.second;
  return {{"weight", entry.first},
          {"scheme", to_string(choice.candidate.scheme)},
          {"step", choice.candidate.step},
          {"bytes", choice.payload_bytes},
          {"stored_bytes", choice.stored_bytes},
          {"file_bytes", choice.compressed_bytes},
          {"divergence", choice.divergence}};
}

/// Throws Error or an exception of the JSON library for what is no choice.
ChoiceRecord::Entry entry_of(const nlohmann::json& json) {
  const MeasuredChoice choice = {
      .candidate = {parse_scheme(json.at("scheme").get<std::string>()), json.at("step").get<float>()},
      .payload_bytes = json.at("bytes"),
      .stored_bytes = json.at("stored_bytes"),
      .compressed_bytes = json.at("file_bytes"),
      .divergence = json.at("divergence")};
  if (choice.payload_bytes < 0 || choice.stored_bytes < 0 || choice.compressed_bytes < 0 || !(choice.divergence >= 0))
    throw FormatError("a choice has impossible values");
  return {json.at("weight").get<std::string>(), choice};
}

/// What a file holds.
struct Found {
  nlohmann::json document;
  std::vector<ChoiceRecord::Entry> entries;
};

/// Throws FormatError for what is no file of measurements, IoError.
Found read(const std::filesystem::path& path) {
  const InputFile file(path);
  try {
    if (file.size() > largest_file) throw FormatError("it is too large");
    const FileBytes content = file.read_all();
    Found found{.document = nlohmann::json::parse(content.bytes().begin(), content.bytes().end()), .entries = {}};
    if (found.document.at("format") != format_name) throw FormatError("it is another kind of file");
    for (const nlohmann::json& choice : found.document.at("choices")) found.entries.push_back(entry_of(choice));
    return found;
  } catch (const IoError&) {
    throw;
  } catch (const std::exception& problem) {
    const bool ours = dynamic_cast<const Error*>(&problem) != nullptr;
    fail<FormatError>("{} holds no measurements ({}); delete it, or name another file by --measurements", path.string(),
                      ours ? problem.what() : "it is damaged");
  }
}

}  // namespace

MeasurementFile::MeasurementFile(std::filesystem::path path, const Facts& facts)
    : path_(std::move(path)),
      claim_(claim_file("the measurements", path_)),
      document_({{"format", format_name}, {"choices", nlohmann::json::array()}}) {
  for (const auto& [what, value] : facts) document_[what] = value;
  std::error_code error;
  std::vector<ChoiceRecord::Entry> known;
  if (std::filesystem::exists(path_, error)) {
    Found found = read(path_);
    for (const auto& [what, value] : facts)
      if (found.document.value(what, nlohmann::json()) != value)
        fail<UsageError>(
            "{} was measured by a run that differs in its {}: finish that one first, delete the file, "
            "or name another one by --measurements",
            path_.string(), what);
    document_ = std::move(found.document);
    known = std::move(found.entries);
  }
  found_ = known.size();
  record_ = ChoiceRecord(known, [this](const ChoiceRecord::Entry& entry) { append(entry); });
}

void MeasurementFile::append(const ChoiceRecord::Entry& entry) {
  if (!std::isfinite(entry.second.divergence)) return;  // JSON has no word for it
  document_.at("choices").push_back(to_json(entry));
  const std::string text = document_.dump(1) + "\n";
  AtomicFile file(path_);
  file.write(bytes_of(std::span<const char>(text)));
  file.commit();
}

}  // namespace nibblenet::tools
