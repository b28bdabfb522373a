#include "tools/common/model_card.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>

#include "engine/io/json.h"
#include "tools/common/command_line.h"
#include "tools/common/report.h"

namespace nibblenet::tools {
namespace {

constexpr std::string_view beginning = "---\nlibrary_name: nibblenet\n";

/// A text as YAML: JSON's strings are YAML's, too.
std::string yaml_text(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// A text from a file as Markdown that shows it as it is.
std::string markdown_text(const std::string& text) {
  std::string result;
  for (const char c : printable(text)) {
    if (std::string_view("\\`*_{}[]<>|#~").find(c) != std::string_view::npos) result += '\\';
    result += c;
  }
  return result;
}

/// Hugging Face's id of a data set, as far as it is known: "cifar10", "image-folder".
std::string data_id(const std::string& description) {
  if (description.starts_with("CIFAR-10")) return "cifar10";
  std::string id = description;
  std::ranges::replace(id, ' ', '-');
  return id;
}

std::string front_matter(const CardFacts& facts, const std::string& name) {
  std::string text = fmt::format("{}pipeline_tag: image-classification\ntags:\n- {}\n- quantized\n", beginning,
                                 yaml_text(facts.network));
  if (facts.evaluation) {
    const CardEvaluation& e = *facts.evaluation;
    text += fmt::format(
        "metrics:\n- accuracy\nmodel-index:\n- name: {}\n  results:\n  - task:\n      type: image-classification\n"
        "    dataset:\n      name: {}\n      type: {}\n      split: test\n    metrics:\n    - type: accuracy\n"
        "      value: {:.4f}\n",
        yaml_text(name), yaml_text(e.data), yaml_text(data_id(e.data)),
        static_cast<double>(e.correct) / static_cast<double>(e.images));
  }
  return text + "---\n\n";
}

std::string evaluation_text(const CardEvaluation& e) {
  const Interval interval = wilson_interval(e.correct, e.images);
  return fmt::format(
      "## Evaluation\n\nAccuracy {:.2f} % ({} of {} test images of {}; 95 % interval {:.2f} to {:.2f} %), "
      "cross-entropy "
      "{:.5f}, in float32.\n\n",
      100 * static_cast<double>(e.correct) / static_cast<double>(e.images), e.correct, e.images, markdown_text(e.data),
      100 * interval.low, 100 * interval.high, e.loss);
}

std::string ledger_text(const CardFacts& facts) {
  constexpr const char* line = "| {} | {} | {} | {:.3f} | {} | {} | {} |\n";
  const auto row = [&](const SizeRow& of, int64_t file) {
    return fmt::format(line, of.name, of.scheme.empty() ? "" : "`" + of.scheme + "`", thousands(of.weights),
                       of.bits_per_weight(), thousands(std::llround(of.estimated.total())), thousands(file),
                       thousands(of.resident.total()));
  };
  std::string text =
      "## Size\n\nIn bytes. *Estimated* is the usual formula, codes and scales alone. *File* and *resident* are "
      "measured: on the disk, and in memory while the network runs.\n\n"
      "| layer | scheme | weights | bits a weight | estimated | file | resident "
      "|\n|---|---|---:|---:|---:|---:|---:|\n";
  for (const SizeRow& each : facts.ledger) text += row(each, each.file);
  text += fmt::format("| file header | | | | | {} | |\n", thousands(facts.header_bytes));
  SizeRow total = sum(facts.ledger, "total");
  return text + row(total, facts.file_bytes) + "\n";
}

/// The metadata that say how the file was made: not what describes its format.
std::string origin_text(const CardFacts& facts) {
  constexpr std::array<std::string_view, 11> of_the_format = {"format",     "format_version", "header_xxh3",  "xxh3:",
                                                              "scheme:",    "shape:",         "compression:", "classes",
                                                              "image_size", "input_range:",   "input_steps:"};
  std::string rows;
  for (const auto& [key, value] : facts.metadata)
    if (std::ranges::none_of(of_the_format, [&](std::string_view name) {
          return name.ends_with(':') ? key.starts_with(name) : key == name;
        }))
      rows += fmt::format("| {} | {} |\n", markdown_text(key), markdown_text(value));
  return rows.empty() ? "" : "## How it was made\n\n| key | value |\n|---|---|\n" + rows + "\n";
}

}  // namespace

std::string model_card(const CardFacts& facts) {
  const std::string name = facts.model.stem().string(), file = facts.model.filename().string();
  const SizeRow total = sum(facts.ledger, "total");
  std::string classes;
  for (const std::string& each : facts.classes) classes += (classes.empty() ? "" : ", ") + markdown_text(each);
  std::string text = front_matter(facts, name);
  text += fmt::format(
      "# {}\n\n{} with {} weights of {:.3f} bits each on average, for square images of {} pixels. The weights are "
      "n-bit "
      "codes in the file and in memory: {} on the disk, {} while it runs.\n\n",
      markdown_text(name), facts.network, thousands(total.weights), total.bits_per_weight(), facts.image_size,
      megabytes(static_cast<double>(facts.file_bytes)), megabytes(static_cast<double>(total.resident.total())));
  text += fmt::format("Classes: {}.\n\n", classes);
  if (facts.evaluation) text += evaluation_text(*facts.evaluation);
  text += ledger_text(facts) + origin_text(facts);
  const std::string word = shell_quoted(file);
  text += fmt::format(
      "## Use\n\nWith the tools of nibblenet:\n\n```sh\ntools/eval {} --data DATA\ntools/classify --model {} "
      "PHOTO.jpg\ntools/export {} --to onnx\n```\n",
      word, word, word);
  return text;
}

bool is_model_card(const std::filesystem::path& path) {
  std::string begin(beginning.size(), '\0');
  std::ifstream file(path, std::ios::binary);
  return file.read(begin.data(), static_cast<std::streamsize>(begin.size())) && begin == beginning;
}

}  // namespace nibblenet::tools
