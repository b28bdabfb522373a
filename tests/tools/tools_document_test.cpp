#include <gtest/gtest.h>

#include <filesystem>
#include <regex>
#include <set>
#include <sstream>

#include "tests/support/golden.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;
using Options = std::set<std::string>;

/// Every --name in a text.
void add_options(const std::string& text, Options& options) {
  static const std::regex name("--[a-z][a-z0-9-]*");
  for (std::sregex_iterator match(text.begin(), text.end(), name), end; match != end; ++match)
    options.insert(match->str());
}

/// What a program's --help lists: lines like "  -o,--output FILE REQUIRED" and "
/// --compress,--no-compress{false}".
Options options_of_help(const std::string& help) {
  Options options;
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with("  -")) add_options(line.substr(2, line.find(' ', 2) - 2), options);
  return options;
}

/// What docs/tools.md lists for a tool: the first cells of the tables in the section "## TOOL", and
/// the sentence that begins with "Common options:".
Options options_of_document(const std::string& document, const std::string& tool) {
  Options options;
  std::istringstream lines(document);
  bool here = false, common = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("## ")) here = line == "## " + tool;
    if (!here) continue;
    common = !line.empty() && (common || line.starts_with("Common options:"));
    if (line.starts_with("| `"))
      add_options(line.substr(0, line.find(" | ", 2)), options);
    else if (common)
      add_options(line, options);
  }
  return options;
}

class ToolsDocument : public ::testing::TestWithParam<std::string> {};

TEST_P(ToolsDocument, ListsTheOptionsOfHelp) {
  const std::string& tool = GetParam();
  const TemporaryFolder folder;
  const Outcome help =
      Child({std::string(NIBBLENET_TOOLS "/") + tool, "--help"}, folder.path(), {}, (folder.path() / "help").string())
          .wait();
  ASSERT_EQ(help.code, 0) << help;
  const Options programs = options_of_help(help.out);
  const Options documents = options_of_document(read_text(fs::path(NIBBLENET_SOURCE) / "docs/tools.md"), tool);
  EXPECT_GE(programs.size(), 2U) << help;
  for (const std::string& option : programs)
    EXPECT_TRUE(documents.contains(option)) << "docs/tools.md, section " << tool << ": " << option << " is missing";
  for (const std::string& option : documents)
    EXPECT_TRUE(programs.contains(option)) << "docs/tools.md, section " << tool << ": there is no " << option;
}

INSTANTIATE_TEST_SUITE_P(Tools, ToolsDocument,
                         ::testing::Values("finetune", "prune", "pack", "eval", "sweep", "inspect", "export", "bench",
                                           "classify"),
                         [](const auto& tool) { return tool.param; });

}  // namespace
}  // namespace nibblenet::testing
