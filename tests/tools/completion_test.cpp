#include <fmt/format.h>
#include <gmock/gmock.h>

#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "tests/tools/run.h"

// --version and --completion, and the shells that run what the latter prints.

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::StartsWith;

class CompletionTest : public ToolsTest {
 protected:
  /// Runs a script by /bin/sh or by the shell of that name.
  Outcome run_script(const std::string& shell, const std::string& script) const {
    write_text(at("script"), script);
    return Child({"/usr/bin/env", shell, at("script").string()}, at(""), environment_, at(".script").string()).wait();
  }
  bool has(const std::string& shell) const { return run_script("sh", "command -v " + shell + " >/dev/null").code == 0; }

  /// What bash offers when Tab is pressed behind `words`.
  std::vector<std::string> offered(const std::string& tool, const std::string& words) const {
    write_text(at("completion"), succeed(tool + " --completion bash").out);
    const Outcome outcome = run_script("bash", fmt::format(R"(source ./completion
COMP_WORDS=({} {})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_nibblenet_{}
printf '%s\n' "${{COMPREPLY[@]}}")",
                                                           tool, words, tool));
    EXPECT_EQ(outcome.code, 0) << outcome;
    EXPECT_EQ(outcome.err, "");
    std::vector<std::string> lines;
    std::istringstream stream(outcome.out);
    for (std::string line; std::getline(stream, line);)
      if (!line.empty()) lines.push_back(line);
    return lines;
  }
};

const std::vector<std::string>& every_tool() {
  static const std::vector<std::string> tools = {"finetune", "prune",  "pack",  "eval",    "sweep",
                                                 "inspect",  "export", "bench", "classify"};
  return tools;
}

TEST_F(CompletionTest, EveryToolTellsItsVersion) {
  for (const std::string& tool : every_tool()) {
    const Outcome outcome = succeed(tool + " --version");
    EXPECT_THAT(
        outcome.out,
        MatchesRegex(tool +
                     " \\(nibblenet\\) [0-9]+\\.[0-9]+\\.[0-9]+\ncommit: ([0-9a-f]{40}(, with changes)?|unknown)\n"
                     "build: (GCC|Clang) .*\ndevices:\n  cpu: .*oneDNN.*\n  cuda: .*\n"));
    EXPECT_EQ(outcome.err, "");
  }
  succeed("inspect small.safetensors --json inspect.json");
  const std::string version = succeed("inspect --version").out;
  for (const char* key : {"version", "commit"})
    EXPECT_THAT(version, HasSubstr(json("inspect.json").at("nibblenet").at(key).get<std::string>()));
  refuse("inspect --version=x", "--version", 2);
}

TEST_F(CompletionTest, EveryToolCompletesItsOptions) {
  for (const std::string& tool : every_tool()) {
    const std::vector<std::string> options = offered(tool, "--");
    EXPECT_THAT(options, IsSupersetOf({"--json", "--force", "--help", "--version"})) << tool;
    const std::string help = succeed(tool + " --help").out;
    for (const std::string& option : options) EXPECT_THAT(help, HasSubstr(option)) << tool;
  }
}

TEST_F(CompletionTest, CompletesWordsAndFiles) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(offered("eval", "--device c"), (Words{"cpu", "cuda", "cudnn"}));
  EXPECT_EQ(offered("eval", "--device = cu"), (Words{"cuda", "cudnn"}));
  EXPECT_EQ(offered("eval", "--split = ''"), (Words{"test", "train", "validation", "fitting"}));
  EXPECT_EQ(offered("eval", "--batch 1"), Words());
  EXPECT_EQ(offered("eval", "--compare sm"), Words{"small.safetensors"});
  EXPECT_EQ(offered("eval", "--simul"), Words{"--simulate"});
  EXPECT_EQ(offered("eval", "sm"), Words{"small.safetensors"});
  EXPECT_EQ(offered("finetune", "--init im"), Words{"imagenet"});
  EXPECT_EQ(offered("finetune", "--init sm"), Words{"small.safetensors"});
  write_text(at("two words.safetensors"), "");
  EXPECT_EQ(offered("pack", "two"), Words{"two words.safetensors"});
  refuse("eval --completion fish", "there are bash and zsh", 2);
}

TEST_F(CompletionTest, LeavesTheShellsOwnCommandsAlone) {
  for (const char* shell : {"bash", "zsh"}) {
    EXPECT_THAT(succeed(std::string("export --completion ") + shell).out, Not(HasSubstr(" export\n")));
    EXPECT_THAT(succeed(std::string("pack --completion ") + shell).out, HasSubstr(" pack\n"));
  }
}

TEST_F(CompletionTest, ZshTakesEveryScript) {
  if (!has("zsh")) GTEST_SKIP() << "there is no zsh";
  std::string script = "autoload -Uz compinit && compinit -D\n";
  for (const std::string& tool : every_tool()) script += succeed(tool + " --completion zsh").out;
  const Outcome outcome = run_script("zsh", script + "echo ${_comps[nibblenet-eval]} ${+_comps[export]}\n");
  EXPECT_EQ(outcome.code, 0) << outcome;
  EXPECT_EQ(outcome.err, "");
  EXPECT_THAT(outcome.out, StartsWith("_nibblenet_eval "));
}

}  // namespace
}  // namespace nibblenet::testing
