#include "tools/common/aliases.h"

#include <gmock/gmock.h>

#include "engine/core/error.h"
#include "tests/tools/run.h"
#include "tools/study/recipe.h"
#include "tools/study/row.h"

namespace nibblenet::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

/// A tool with two renamed flags, and one with renamed values.
class TakeOldNames : public ::testing::Test {
 protected:
  TakeOldNames() {
    app_.add_option("--target-file", text_);
    app_.add_option("--passes", text_);
    app_.add_option("--rounding", text_);
  }
  std::vector<std::string> renamed(std::vector<std::string> arguments) const {
    tools::take_old_names(app_, arguments);
    return arguments;
  }

  CLI::App app_{"", "tool"};
  std::string text_;
};

TEST_F(TakeOldNames, ReplacesFlagsAndValues) {
  EXPECT_THAT(renamed({"m", "--target-rest", "8", "--refinements=1"}),
              ElementsAre("m", "--target-file", "8", "--passes=1"));
  EXPECT_THAT(renamed({"--rounding", "compensated"}), ElementsAre("--rounding", "gptq"));
  EXPECT_THAT(renamed({"--rounding=compensated"}), ElementsAre("--rounding=gptq"));
}

TEST_F(TakeOldNames, LeavesAllElseAlone) {
  const std::vector<std::string> arguments = {
      "compensated", "--rounding", "nearest", "--target-restless", "--units", "3",
      "--preset",    "seed",       "--",      "--target-rest"};
  EXPECT_EQ(renamed(arguments), arguments) << "values of other flags, flags of other tools, names of files";
}

TEST_F(TakeOldNames, RefusesBothNamesOfAFlag) {
  EXPECT_THROW(renamed({"--target-rest", "8", "--target-file=9"}), UsageError);
  EXPECT_NO_THROW(renamed({"--target-rest", "8", "--target-rest", "9"})) << "for the parser to judge";
}

TEST(AddBothNames, AtAnyDepthAndInBothDirections) {
  nlohmann::json document = {{"size", {{"file", 3}, {"layers", {{{"file", 1}}, {{"rest", 2}}}}}},
                             {"compressed_rest", nullptr},
                             {"baseline", "missing"}};
  tools::add_both_names(document);
  EXPECT_EQ(document.at("size").at("rest"), 3);
  EXPECT_EQ(document.at("size").at("layers"), (nlohmann::json{{{"file", 1}, {"rest", 1}}, {{"file", 2}, {"rest", 2}}}));
  EXPECT_TRUE(document.at("compressed_file").is_null());
  EXPECT_EQ(document.at("yardstick"), "missing");
}

TEST(AddBothNames, PathsAndMetadataHaveOneName) {
  const nlohmann::json document = {{"file", "model.safetensors"}, {"metadata", {{"units", "classifier.1: 5 of 67"}}}};
  nlohmann::json both = document;
  tools::add_both_names(both);
  EXPECT_EQ(both, document);
}

TEST(NamesOfColumn, TheOldOneStandsBesideTheNew) {
  EXPECT_THAT(tools::names_of_column("file_bytes"), ElementsAre("file_bytes", "rest_bytes"));
  EXPECT_THAT(tools::names_of_column("resident_bytes"), ElementsAre("resident_bytes"));
}

TEST(Recipe, OldNamesReadAsTodays) {
  EXPECT_EQ(to_string(tools::parse_recipe("pack --target-rest 8.2 --calibrated --refinements 1")),
            "pack --target-file 8.2 --calibrated --passes 1");
  EXPECT_EQ(to_string(tools::parse_recipe("pack --calibrated --rounding compensated")),
            "pack --calibrated --rounding gptq");
}

class OldNames : public ToolsTest {};

TEST_F(OldNames, GiveTheSameFilesAndALineOnTheStandardError) {
  const std::string pack = "pack small.safetensors --calibrate standin --calibration-images 20 ";
  const Outcome old = succeed(pack + "--rounding compensated --refinements 1 -o old.safetensors --json old.json");
  EXPECT_THAT(old.err, HasSubstr("pack: --rounding compensated is now --rounding gptq; 0.3 drops the old name\n"));
  EXPECT_THAT(old.err, HasSubstr("pack: --refinements is now --passes; 0.3 drops the old name\n"));
  const Outcome now = succeed(pack + "--rounding gptq --passes 1 -o new.safetensors --json new.json");
  EXPECT_THAT(now.err, Not(HasSubstr("0.3")));
  EXPECT_EQ(read_text(at("old.safetensors")), read_text(at("new.safetensors")));
  const nlohmann::json report = json("new.json");
  EXPECT_EQ(report.at("compensation"), report.at("gptq"));
  EXPECT_EQ(report.at("size").at("rest"), report.at("size").at("file"));

  const std::string prune = "prune small.safetensors --calibrate standin --calibration-images 20 ";
  EXPECT_THAT(succeed(prune + "--units classifier.1=30 -o narrow.safetensors --json prune.json").err,
              HasSubstr("prune: --units is now --channels"));
  EXPECT_EQ(json("prune.json").at("layers").at(0).at("units"), 67);
  refuse(prune + "--units classifier.1=30 --channels classifier.4=5 -o x.safetensors", "give one of them", 2);
}

TEST_F(OldNames, AreInNoHelp) {
  for (const std::string tool : {"pack", "prune", "sweep"}) {
    const std::string help = succeed(tool + " --help").out;
    for (const char* old : {"--target-rest", "--refinements", "--units", "compensated", "seed:"})
      EXPECT_THAT(help, Not(HasSubstr(old))) << tool;
  }
}

TEST_F(OldNames, OfASweepsFolderAreStillRead) {
  const std::string sweep =
      "sweep small.safetensors --data standin --limit 20 --threads 1 --calibrate standin "
      "--calibration-images 20 --out out --schemes \"pack --calibrated --passes 1\"";
  environment_.push_back("PATH=/nowhere");  // no plots
  succeed(sweep);
  const auto lines_before = read_text(at("out/results.jsonl"));
  std::string rows, line;
  for (std::istringstream text(lines_before); std::getline(text, line);) {
    nlohmann::json row = nlohmann::json::parse(line);
    row.erase("xxh3");  // rows had none
    row.erase("compressed_file");
    row.at("size").erase("file");
    if (row.at("scheme") == "pack --calibrated --passes 1") row["scheme"] = "pack --calibrated --refinements 1";
    rows += row.dump() + "\n";
  }
  ASSERT_NE(rows, lines_before);
  write_text(at("out/results.jsonl"), rows);
  EXPECT_THAT(succeed(sweep).out, HasSubstr("going on: 2 rows are there already"));
  EXPECT_EQ(read_text(at("out/results.jsonl")), rows) << "nothing was measured again";
  const nlohmann::json results = json("out/report.json").at("results");
  EXPECT_EQ(results.at(1).at("scheme"), "pack --calibrated --passes 1");
  EXPECT_EQ(results.at(1).at("compressed_file"), results.at(1).at("compressed_rest"));
  EXPECT_THAT(read_text(at("out/report.csv")), HasSubstr(",file_bytes,rest_bytes,"));
}

}  // namespace
}  // namespace nibblenet::testing
