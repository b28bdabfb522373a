#include "tools/common/completion.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <sstream>
#include <string_view>
#include <vector>

#include "engine/core/error.h"

namespace nibblenet::tools {
namespace {

/// An option as a shell sees it.
struct Completion {
  std::vector<std::string> names;  ///< "-o", "--output"
  bool takes_value = false;
  bool repeatable = false;
  std::vector<std::string> words;  ///< that the value may be
  bool files = false;              ///< the value may be the name of a file
  std::string help;                ///< the first clause
};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

/// A type is what --help shows: "TEXT:{auto,cpu}", "random|imagenet|FILE" or "PATH".
void add_values(const std::string& type, Completion& completion) {
  if (const size_t begin = type.find('{'), end = type.find('}'); begin != type.npos && end != type.npos) {
    completion.words = split(type.substr(begin + 1, end - begin - 1), ',');
    return;
  }
  for (const std::string& word : split(type, '|')) {
    if (word == "FILE" || word == "PATH" || word == "DIR" || word == "DATA" || word == "MODEL")
      completion.files = true;
    else if (std::ranges::all_of(word,
                                 [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; }))
      completion.words.push_back(word);
  }
}

std::string first_clause(const std::string& help) {
  return help.substr(0, std::min({help.find('\n'), help.find("; "), help.find(". "), help.find(" ("), help.size()}));
}

std::vector<Completion> completions_of(const CLI::App& app) {
  std::vector<Completion> found;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_positional() || option->get_group().empty()) continue;
    Completion completion{.takes_value = option->get_items_expected_max() > 0 && option->get_type_size_max() > 0,
                          .repeatable = option->get_items_expected_max() > 1,
                          .help = first_clause(option->get_description())};
    for (const std::string& name : option->get_snames()) completion.names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) completion.names.push_back("--" + name);
    if (completion.takes_value) add_values(option->get_type_name(), completion);
    found.push_back(std::move(completion));
  }
  return found;
}

/// Words by which a shell finds the script. `eval` and `export` are commands of the shell: for
/// these only names that say where the tool is.
std::vector<std::string> commands_of(const std::string& tool) {
  std::vector<std::string> commands = {"nibblenet-" + tool, "tools/" + tool, "./tools/" + tool};
  if (tool != "eval" && tool != "export") commands.push_back(tool);
  return commands;
}

std::string bash_script(const std::string& tool, const std::vector<Completion>& completions) {
  std::string names, cases;
  for (const Completion& completion : completions) {
    for (const std::string& name : completion.names) names += (names.empty() ? "" : " ") + name;
    if (!completion.takes_value) continue;
    std::string values;
    if (!completion.words.empty()) values += fmt::format(" -W '{}'", fmt::join(completion.words, " "));
    if (completion.files) values += " -f";
    cases += fmt::format("    {}) ", fmt::join(completion.names, " | "));
    cases += values.empty() ? "return ;;\n" : fmt::format("values=({}) ;;\n", values.substr(1));
  }
  return fmt::format(R"(_nibblenet_{0}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} option=${{COMP_WORDS[COMP_CWORD - 1]}}
  local -a values=(-f)
  COMPREPLY=()
  if [[ $word == = ]]; then  # --option=
    word=''
  elif [[ $option == = ]]; then  # --option=value
    option=${{COMP_WORDS[COMP_CWORD - 2]}}
  fi
  [[ $word != -* ]] || values=(-W '{1}')
  case $option in
{2}  esac
  mapfile -t COMPREPLY < <(compgen "${{values[@]}}" -- "$word")
}}
complete -o filenames -F _nibblenet_{0} {3}
)",
                     tool, names, cases, fmt::join(commands_of(tool), " "));
}

/// `text` inside of a zsh specification between single quotes.
std::string for_zsh(std::string text) {
  for (char& c : text)
    if (c == '[')
      c = '(';
    else if (c == ']')
      c = ')';
    else if (c == '\'' || c == '\\' || c == '`' || c == '\n')
      c = ' ';
  return text;
}

std::string zsh_script(const std::string& tool, const std::vector<Completion>& completions) {
  std::string specifications;
  for (const Completion& completion : completions) {
    std::string value;
    if (completion.takes_value) {
      value = ":value:";
      if (completion.files)
        value += completion.words.empty()
                     ? "_files"
                     : fmt::format("_alternative \"words\\:word\\:({})\" \"files\\:file\\:_files\"",
                                   fmt::join(completion.words, " "));
      else if (!completion.words.empty())
        value += fmt::format("({})", fmt::join(completion.words, " "));
    }
    const std::string others = completion.repeatable         ? "*"
                               : completion.names.size() > 1 ? fmt::format("({})", fmt::join(completion.names, " "))
                                                             : "";
    for (const std::string& name : completion.names)
      specifications +=
          fmt::format(" \\\n    '{}{}{}[{}]{}'", others, name,
                      completion.takes_value && name.starts_with("--") ? "=" : "", for_zsh(completion.help), value);
  }
  return fmt::format("_nibblenet_{0}() {{\n  _arguments{1} \\\n    '*:file:_files'\n}}\ncompdef _nibblenet_{0} {2}\n",
                     tool, specifications, fmt::join(commands_of(tool), " "));
}

}  // namespace

std::string completion_script(const CLI::App& app, const std::string& shell) {
  if (shell == "bash") return bash_script(app.get_name(), completions_of(app));
  if (shell == "zsh") return zsh_script(app.get_name(), completions_of(app));
  fail<UsageError>("--completion {}: there are bash and zsh", shell);
}

}  // namespace nibblenet::tools
