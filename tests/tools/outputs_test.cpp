#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <sstream>

#include "tests/support/small_network.h"
#include "tests/tools/run.h"
#include "tools/common/progress.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

class OutputsTest : public ToolsTest {
 protected:
  static inline const std::string train =
      "finetune --data standin --threads 1 --image-size 64 --init small.safetensors --epochs 2 --out ";

  /// run() behind a shell's redirection or limit: "ulimit -f 8; exec \"$@\"".
  Outcome run_in_shell(const std::string& script, const std::string& line) const {
    std::vector<std::string> words = command(line);
    words.insert(words.begin(), {"/bin/sh", "-c", script, "sh"});
    return Child(words, at(""), environment_, at(".shell").string()).wait();
  }
  std::vector<fs::path> temporary_files() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(at("")))
      if (entry.path().extension() == ".tmp") found.push_back(entry.path());
    return found;
  }
};

TEST_F(OutputsTest, TextThatIsLostNeverEndsWork) {
  succeed(train + "whole.safetensors");
  for (const char* script : {"exec \"$@\" 2>&-", "exec \"$@\" 2>/dev/full", "exec \"$@\" >/dev/full",
                             "exec \"$@\" >/dev/full 2>&1", "exec \"$@\" >&- 2>&-", "exec \"$@\" <&- >&- 2>&-"}) {
    SCOPED_TRACE(script);
    fs::remove(at("out.safetensors"));
    const bool output_lost = std::string_view(script).find(" >") != std::string_view::npos;
    EXPECT_EQ(run_in_shell(script, train + "out.safetensors").code, output_lost ? 1 : 0);
    EXPECT_TRUE(same_bits(model("whole.safetensors"), model("out.safetensors")));
    EXPECT_EQ(run_in_shell(script, "eval missing.safetensors").code, 1);
  }
}

TEST_F(OutputsTest, AFullDiskBehindTheStandardOutputIsAnError) {
  succeed("pack small.safetensors");
  for (const std::string line :
       {"bench small.safetensors --batch 1 --seconds 0 --threads 1", "inspect small.safetensors",
        "eval small.safetensors --data standin --limit 10 --threads 1"}) {
    const Outcome outcome = run(line, "/dev/full");
    EXPECT_EQ(outcome.code, 1) << line << outcome;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << line << outcome;
  }
}

TEST_F(OutputsTest, FilesAreWholeOrAsTheyWere) {
  succeed("inspect small.safetensors --json old.json");
  const std::string old = read_text(at("old.json"));
  ASSERT_GT(old.size(), 4096U);
  Outcome outcome = run_in_shell("ulimit -f 8; exec \"$@\"", "inspect small.safetensors --json old.json");
  EXPECT_EQ(outcome.code, 1) << outcome;
  EXPECT_NE(outcome.err.find("old.json"), std::string::npos) << outcome;
  EXPECT_EQ(read_text(at("old.json")), old);
  EXPECT_EQ(temporary_files(), std::vector<fs::path>());
}

TEST_F(OutputsTest, WithRoomForTheModelAloneTheModelIsWritten) {
  const auto blocks = fs::file_size(at("small.safetensors")) / 512 + 30;  // the checkpoint is twice as large
  const Outcome outcome = run_in_shell(fmt::format("ulimit -f {}; exec \"$@\"", blocks),
                                       train + "out.safetensors --checkpoint-every 0 --freeze none");
  EXPECT_EQ(outcome.code, 1) << outcome;
  EXPECT_NE(outcome.err.find("no checkpoint, training goes on: cannot write"), std::string::npos) << outcome;
  EXPECT_NE(outcome.err.find("finetune: error: cannot write"), std::string::npos) << outcome;
  succeed("inspect out.safetensors");
  EXPECT_EQ(temporary_files(), std::vector<fs::path>());
}

TEST_F(OutputsTest, AStoppedRunSavesItsModelWhereTheCheckpointDoesNotFit) {
  const std::string line =
      "finetune --data standin --threads 1 --image-size 64 --init small.safetensors --freeze none --batch 10 "
      "--epochs 10000 --out out.safetensors";
  const std::string resume = "finetune --data standin --threads 1 --resume out.checkpoint.safetensors";
  const auto blocks = fs::file_size(at("small.safetensors")) / 512 + 30;  // the checkpoint is twice as large
  const auto stop = [&](const std::string& script, const std::string& tool) {
    std::vector<std::string> words = command(tool);
    words.insert(words.begin(), {"/bin/sh", "-c", script, "sh"});
    Child child(words, at(""), environment_, at(".stopped").string());
    EXPECT_TRUE(child.wait_for("epoch "));
    child.send(SIGTERM);
    return child.wait();
  };
  const std::string small_disk = fmt::format("ulimit -f {}; exec \"$@\"", blocks);
  const auto expect_saved = [&](const Outcome& outcome, const std::string& lost) {
    EXPECT_EQ(outcome.code, 1) << outcome;
    EXPECT_NE(outcome.err.find("finetune: error: stopped, and the checkpoint could not be written"), std::string::npos)
        << outcome;
    EXPECT_NE(outcome.err.find(lost), std::string::npos) << outcome;
    EXPECT_FALSE(same_bits(model("small.safetensors"), model("out.safetensors")));
    fs::remove(at("out.safetensors"));
  };
  expect_saved(stop(small_disk, line), "are lost");
  EXPECT_FALSE(fs::exists(at("out.checkpoint.safetensors")));

  EXPECT_EQ(stop("exec \"$@\"", line).code, 130);
  const std::string checkpoint = read_text(at("out.checkpoint.safetensors"));
  expect_saved(stop(small_disk, resume), "continue with: tools/finetune --resume");
  EXPECT_EQ(read_text(at("out.checkpoint.safetensors")), checkpoint) << "the one before stays";
  EXPECT_EQ(stop("ulimit -f 8; exec \"$@\"", resume).code, 1);
  EXPECT_FALSE(fs::exists(at("out.safetensors")));
}

TEST_F(OutputsTest, WhatKilledRunsLeftIsRemoved) {
  write_text(at(".nibblenet-123-0.tmp"), "half");
  write_text(at(".nibblenet-0123456789abcdef.tmp"), "");
  write_text(at("mine.tmp"), "not ours");
  succeed("export small.safetensors -o out.safetensors");
  EXPECT_EQ(temporary_files(), std::vector{at("mine.tmp")});
}

TEST_F(OutputsTest, OneRunWritesAFileAtATime) {
  Child first(command("finetune --data standin --threads 1 --image-size 64 --init small.safetensors --epochs 2000 "
                      "--out out.safetensors"),
              at(""), environment_, at(".first").string());
  ASSERT_TRUE(first.wait_for("epoch 1/")) << first.wait();
  for (const std::string& line :
       {train + "out.safetensors", std::string("export small.safetensors -o out.safetensors")})
    refuse(line, "another run is about to write it", 1);
  EXPECT_EQ(temporary_files().size(), 2U) << "the first run's claims stay";
  first.send(SIGTERM);
  first.wait();
  EXPECT_EQ(temporary_files(), std::vector<fs::path>());
  // Interrupted, it can go on: another run may not take its checkpoint.
  refuse(train + "out.safetensors", "finetune --resume out.checkpoint.safetensors", 2);
  succeed(train + "out.safetensors --force");
  succeed(train + "out.safetensors");  // that run was done
  write_text(at("new.checkpoint.safetensors"), "something else");
  refuse(train + "new.safetensors", "is no checkpoint", 2);
}

TEST_F(OutputsTest, DefaultNamesAreClaimed) {
  const std::string line = "finetune --data standin --threads 1 --image-size 64 --init small.safetensors --epochs 1";
  {
    std::vector<std::unique_ptr<Child>> runs;
    for (int i = 0; i < 4; ++i)
      runs.push_back(
          std::make_unique<Child>(command(line), at(""), environment_, at(fmt::format(".run{}", i)).string()));
    for (const auto& child : runs) EXPECT_EQ(child->wait().code, 0);
  }
  int models = 0, checkpoints = 0;
  for (const auto& entry : fs::directory_iterator(at("weights")))
    ++(entry.path().string().ends_with(".checkpoint.safetensors") ? checkpoints : models);
  EXPECT_EQ(models, 4);
  EXPECT_EQ(checkpoints, 4);
}

TEST_F(OutputsTest, NothingIsOverwrittenByMistake) {
  write_text(at("archive.tar.gz"), "\x1f\x8b\x08");
  write_text(at("note.txt"), "not to be lost");
  succeed(train + "run.safetensors");
  const std::string calibrate = "pack small.safetensors --calibrate standin --calibration-images 10 ";
  succeed(calibrate + "-o packed.safetensors --save-calibration some.calibration");
  fs::create_symlink("nowhere.safetensors", at("dangling"));
  fs::create_hard_link(at("small.safetensors"), at("link.safetensors"));
  const std::string small = read_text(at("small.safetensors"));
  const std::string eval = "eval small.safetensors --data standin --limit 10 --threads 1 ";
  for (const std::string& line :
       {std::string("pack small.safetensors -o small.safetensors"),
        std::string("pack small.safetensors -o link.safetensors"),
        std::string("export small.safetensors -o small.safetensors"),
        std::string("export small.safetensors -o archive.tar.gz"),
        std::string("export small.safetensors -o dangling"),
        std::string("prune small.safetensors --calibrate standin --channels classifier.1=5 -o small.safetensors"),
        std::string(
            "pack small.safetensors -o out.safetensors --calibrate standin --save-calibration small.safetensors"),
        eval + "--logits small.safetensors",
        eval + "--logits archive.tar.gz",
        eval + "--logits seven.safetensors",
        eval + "--json small.safetensors",
        eval + "--json archive.tar.gz",
        eval + "--json dangling",
        std::string("inspect small.safetensors --json seven.safetensors"),
        train + "small.safetensors",
        train + "archive.tar.gz",
        std::string("pack small.safetensors -o note.txt"),
        std::string("pack small.safetensors -o run.checkpoint.safetensors"),
        std::string("export small.safetensors -o run.checkpoint.safetensors"),
        train + "run.checkpoint.safetensors",
        std::string("pack small.safetensors -o some.calibration"),
        std::string("pack small.safetensors --calibration some.calibration -o some.calibration"),
        calibrate + "-o other.safetensors --save-calibration packed.safetensors"})
    refuse(line, "--force", 2);
  EXPECT_EQ(read_text(at("small.safetensors")), small);
  EXPECT_EQ(read_text(at("archive.tar.gz")), "\x1f\x8b\x08");
  EXPECT_FALSE(fs::exists(at("nowhere.safetensors")));

  // Replacing the same kind of file, or by request.
  for (int time = 0; time < 2; ++time) succeed(eval + "--logits logits.safetensors --json eval.json");
  succeed(calibrate + "-o packed.safetensors --save-calibration some.calibration");
  succeed("pack small.safetensors -o small.safetensors --force");
  succeed("inspect seven.safetensors --json archive.tar.gz --force");
  EXPECT_TRUE(read_text(at("archive.tar.gz")).starts_with("{"));
}

TEST_F(OutputsTest, TwoOutputsAreTwoFiles) {
  const std::string eval = "eval small.safetensors --data standin --limit 10 --threads 1 ";
  const std::string calibrate = "pack small.safetensors --calibrate standin --calibration-images 10 ";
  fs::create_directory(at("study"));
  for (const auto& [line, mention] : std::initializer_list<std::pair<std::string, std::string>>{
           {"pack small.safetensors -o x.safetensors --json x.safetensors", "--json and -o are one file"},
           {"pack small.safetensors -o x.safetensors --json ./standin/../x.safetensors", "--json and -o are one file"},
           {"export small.safetensors -o x.safetensors --json x.safetensors", "--json and -o are one file"},
           {calibrate + "-o x.safetensors --save-calibration x.safetensors", "-o and --save-calibration are one file"},
           {eval + "--logits x.safetensors --json x.safetensors", "--json and --logits are one file"},
           {train + "x.safetensors --json x.safetensors", "--json and --out are one file"},
           {train + "x.safetensors --json x.checkpoint.safetensors", "--json and the checkpoint of --out are one"},
           {"sweep small.safetensors --data standin --limit 10 --schemes linear:4 --out study --json study/sweep.json",
            "--json and sweep.json of --out are one file"}})
    refuse(line, mention, 2);
  EXPECT_FALSE(fs::exists(at("x.safetensors")));
}

TEST_F(OutputsTest, ASweepKeepsItsSetupAndResults) {
  const std::string sweep = "sweep small.safetensors --data standin --limit 10 --schemes linear:4:row --out study ";
  succeed(sweep);
  const std::string setup = read_text(at("study/sweep.json")), results = read_text(at("study/results.jsonl"));
  for (const char* file : {"study/sweep.json", "study/results.jsonl"})
    refuse(std::string("inspect small.safetensors --json ") + file, "belongs to a sweep", 2);
  refuse(sweep + "--json study/sweep.json", "belongs to a sweep", 2);
  EXPECT_EQ(read_text(at("study/sweep.json")), setup);
  EXPECT_EQ(read_text(at("study/results.jsonl")), results);
  succeed(sweep + "--json study/mine.json");
}

TEST_F(OutputsTest, PipesAndDevicesAreWrittenDirectly) {
  succeed("inspect small.safetensors --json /dev/null");
  succeed("export small.safetensors -o /dev/null");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  const Outcome piped = run_in_shell("\"$@\" -o /dev/stdout | tail -c 1000 >piped", "export small.safetensors");
  EXPECT_EQ(piped.code, 0) << piped;
  EXPECT_GT(fs::file_size(at("piped")), 900U);
  ASSERT_EQ(mkfifo(at("pipe").c_str(), 0600), 0);
  const Outcome json = run_in_shell("exec 3<>pipe; \"$@\"; code=$?; exec 4<pipe; exec 3>&-; cat <&4 >read; exit $code",
                                    "inspect small.safetensors --json pipe");
  EXPECT_EQ(json.code, 0) << json;
  EXPECT_TRUE(nlohmann::json::accept(read_text(at("read"))));
  EXPECT_TRUE(fs::is_fifo(at("pipe")));
}

/// Options of a tool's --help that take a number, by their types.
std::vector<std::string> numeric_options(const std::string& help) {
  std::vector<std::string> options;
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string option, type;
    words >> option >> type;
    if (!option.starts_with("--")) continue;
    type = type.substr(0, type.find_first_of(":="));
    for (const char* number : {"INT", "UINT", "FLOAT", "K", "N", "SECONDS", "X", "MB", "POINTS", "FRACTION", "LAMBDA"})
      if (type == number) options.push_back(option);
  }
  return options;
}

TEST_F(OutputsTest, NumbersThatAreNoneAreRefused) {
  const std::vector<std::pair<std::string, size_t>> tools = {
      {"finetune --data standin --init small.safetensors --image-size 64", 13},
      {"pack small.safetensors", 8},
      {"eval small.safetensors --data standin", 4},
      {"prune small.safetensors --channels classifier.1=5 -o out.safetensors --calibrate standin", 3},
      {"sweep small.safetensors --data standin", 4},
      {"bench small.safetensors", 4},
      {"inspect small.safetensors --routes", 2},
      {"classify small.safetensors --model small.safetensors", 2}};
  for (const auto& [line, least] : tools) {
    const std::vector<std::string> options = numeric_options(succeed(line.substr(0, line.find(' ')) + " --help").out);
    EXPECT_GE(options.size(), least) << line;
    for (const std::string& option : options)
      for (const char* value : {"nan", "inf", "-inf", "1e400", "99999999999999999999", "x"})
        refuse(fmt::format("{} {}={}", line, option, value), option, 2);
  }
  const std::string line = "finetune --data standin --init small.safetensors --image-size 64 ";
  for (const char* flag :
       {"--epochs 9223372036854775807", "--epochs -1", "--seed -1", "--image-size 9000000", "--lr -1"})
    refuse(line + flag, std::string(flag).substr(0, std::string(flag).find(' ')), 2);
}

TEST(ProgressLine, IsCutAndSaysNoNonsense) {
  using tools::progress_line;
  EXPECT_EQ(progress_line("epoch 1/2", "batches", 5, 10, 2.5, "loss 1", 0),
            "epoch 1/2: 5/10 batches (50 %), 2.5 batches/s, 0:02 left, loss 1");
  EXPECT_EQ(progress_line("a", "images", 10, 10, 0, "", 0), "a: 10/10 images (100 %)");
  EXPECT_EQ(progress_line("a", "images", 10, 10, 3, "", 0), "a: 10/10 images (100 %), 3.0 images/s");
  EXPECT_EQ(progress_line("a", "images", 1, 10, 3, "", 8), "a: 1/10 ");
  EXPECT_EQ(progress_line("a\xc3\xa4", "x", 1, 10, 3, "", 2), "a") << "half a character";
  EXPECT_EQ(tools::duration_text(3723.4), "1:02:03");
  EXPECT_EQ(tools::duration_text(59.6), "1:00");
}

}  // namespace
}  // namespace nibblenet::testing
