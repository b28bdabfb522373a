#include <signal.h>

#include <algorithm>
#include <chrono>
#include <regex>
#include <thread>

#include "engine/core/random.h"
#include "engine/io/dataset.h"
#include "tests/support/small_network.h"
#include "tests/tools/rank_jobs.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

class RanksTest : public RankJobs {
 protected:
  static inline const std::string training =
      "finetune --data standin --image-size 64 --init small.safetensors --freeze none --augment flip --batch 40 "
      "--blocks 7 --checkpoint-every 0.01 --force ";
};

TEST_F(RanksTest, TheirNumberChangesNoBit) {
  const std::string line = training + "--epochs 2 --out ";
  succeed(line + "one.safetensors --threads 1");
  succeed(line + "two.safetensors --threads 2");
  const std::string expected = read_text(at("one.safetensors"));
  const auto expected_checkpoint = checkpoint("one.checkpoint.safetensors");
  EXPECT_TRUE(read_text(at("two.safetensors")) == expected);
  for (const int ranks : {1, 2, 3}) {
    SCOPED_TRACE(ranks);
    const Outcome outcome = run_job({{ranks, line + "ranks.safetensors --threads 1"}});
    ASSERT_EQ(outcome.code, 0) << outcome;
    EXPECT_NE(outcome.out.find("epoch 2/2"), std::string::npos) << outcome;
    EXPECT_EQ(outcome.out.find("epoch 2/2"), outcome.out.rfind("epoch 2/2")) << "more than one rank prints";
    EXPECT_TRUE(read_text(at("ranks.safetensors")) == expected);
    EXPECT_TRUE(checkpoint("ranks.checkpoint.safetensors") == expected_checkpoint);
  }
}

TEST_F(RanksTest, ATeacherAndAFastSum) {
  const std::string line = training + "--epochs 1 --threads 1 --distill small.safetensors --distill-weight 0.5 --out ";
  succeed(line + "one.safetensors");
  const Outcome outcome = run_job({{3, line + "ranks.safetensors"}});
  ASSERT_EQ(outcome.code, 0) << outcome;
  EXPECT_TRUE(read_text(at("ranks.safetensors")) == read_text(at("one.safetensors")));

  const std::string plain = std::regex_replace(training, std::regex("--blocks 7 "), "") + "--threads 1 ";
  succeed(plain + "--epochs 2 --json plain.json --out plain.safetensors");
  const Outcome fast = run_job({{2, plain + "--epochs 1 --reduce fast --out fast.safetensors"}});
  ASSERT_EQ(fast.code, 0) << fast;
  EXPECT_NE(fast.out.find("--reduce fast: other numbers of ranks"), std::string::npos) << fast;
  const std::string resume = "finetune --resume fast.checkpoint.safetensors --epochs 2 --threads 1 --json fast.json";
  refuse_job({{2, resume}}, "or add --reduce fast");
  ASSERT_EQ(run_job({{3, resume + " --reduce fast"}}).code, 0);
  EXPECT_NEAR(json("fast.json").at("test_loss").get<double>(), json("plain.json").at("test_loss").get<double>(), 1e-3);
}

TEST_F(RanksTest, KilledAtAnyMomentTheyLoseNothingThatWasSaved) {
  const std::string line = training + "--epochs 30 --threads 1 --out ";
  succeed(line + "whole.safetensors");
  Random random(5, 1);
  for (int kill_number = 0; kill_number < 10; ++kill_number) {
    const int ranks = 2 + kill_number % 2;
    const bool saved = fs::exists(at("cut.checkpoint.safetensors"));
    Child child(job({{ranks, saved ? "finetune --resume cut.checkpoint.safetensors --threads 1 --checkpoint-every 0.01"
                                   : line + "cut.safetensors"}}),
                at(""), environment_, at(".cut").string());
    const std::vector<pid_t> processes = processes_of(child, static_cast<size_t>(ranks));
    std::this_thread::sleep_for(milliseconds(random.below(900)));
    const size_t victim = random.below(static_cast<uint64_t>(ranks));
    if (victim < processes.size()) kill(processes[victim], SIGKILL);
    const Outcome outcome = child.wait();
    if (outcome.code == 0) break;  // it was faster
    EXPECT_LE(lines_of_tool(outcome), 1) << outcome;
    if (lines_of_tool(outcome) == 1) {
      EXPECT_NE(outcome.err.find(fmt::format("(process {}) has ended", processes.at(victim))), std::string::npos)
          << outcome;
    }
  }
  ASSERT_TRUE(fs::exists(at("cut.checkpoint.safetensors")));
  succeed("finetune --resume cut.checkpoint.safetensors --threads 2");
  EXPECT_TRUE(read_text(at("cut.safetensors")) == read_text(at("whole.safetensors")));
}

TEST_F(RanksTest, WhatDiffersBetweenThemIsRefused) {
  const std::string line = training + "--epochs 1 --threads 1 --out never.safetensors";
  refuse_job({{1, line}, {1, line + " --lr 0.02"}}, "rank 1 has another learning_rate than rank 0 (0.02 in place of");
  write_standin(at("other"), 200, 100, 2);
  refuse_job({{1, line}, {1, training + "--epochs 1 --threads 1 --data other"}}, "--data");
  std::string other = line;
  refuse_job({{1, line}, {1, other.replace(other.find("standin"), 7, "other")}}, "rank 1 has another data set");
  refuse_job({{1, line}, {1, line + " --init seven.safetensors"}}, "--init");
  refuse_job({{7, line}}, "6 blocks of 7 images, fewer than 7 ranks");
  refuse_job({{1, line}, {1, line + " --reduce fast"}}, "--reduce fast: --blocks promised the same bits");
  const std::string fast = std::regex_replace(line, std::regex("--blocks 7 "), "") + " --reduce fast";
  refuse(fast, "--reduce fast is for several processes", 2);
  refuse_job({{1, fast}, {1, std::regex_replace(fast, std::regex("fast"), "exact")}}, "rank 1 has another --reduce");
  refuse_job({{3, std::regex_replace(fast, std::regex("--batch 40"), "--batch 2")}},
             "fewer images than there are ranks");
  environment_.emplace_back("NIBBLENET_MPI_MODULE=" + at("small.safetensors").string());
  const Outcome outcome = run_job({{2, line}});
  EXPECT_NE(outcome.err.find("finetune: error: cannot load"), std::string::npos) << outcome;
  EXPECT_FALSE(fs::exists(at("never.safetensors")));
}

TEST_F(RanksTest, ARankThatIsSilentEndsAll) {
  Child child(job({{2, training + "--epochs 100000 --threads 1 --rank-timeout 3 --out silent.safetensors"}}), at(""),
              environment_, at(".silent").string());
  ASSERT_TRUE(child.wait_for("epoch 1/"));
  const std::vector<pid_t> processes = processes_of(child, 2);
  ASSERT_EQ(processes.size(), 2U);
  kill(std::ranges::max(processes), SIGSTOP);
  const Outcome outcome = child.wait();
  EXPECT_NE(outcome.code, 0) << outcome;
  EXPECT_NE(outcome.err.find("has been silent for 3 s"), std::string::npos) << outcome;
}

TEST_F(RanksTest, ADiskThatIsFullEndsAll) {
  write_text(at("limited"), "#!/bin/sh\nulimit -f 20\nexec \"$@\"\n");
  fs::permissions(at("limited"), fs::perms::owner_all);
  std::vector<std::string> words = job({{2, training + "--epochs 1 --threads 1 --out full.safetensors"}});
  words.insert(words.begin() + 4, at("limited").string());
  const Outcome outcome = Child(words, at(""), environment_, at(".full").string()).wait();
  EXPECT_NE(outcome.code, 0) << outcome;
  EXPECT_EQ(lines_of_tool(outcome), 1) << outcome;
  EXPECT_NE(outcome.err.find("full.safetensors"), std::string::npos) << outcome;
}

/// 90 images in batches of 16: the last round has fewer batches than ranks, and a smaller one.
TEST_F(RanksTest, EvaluateWithTheBitsOfOneProcess) {
  succeed("pack small.safetensors --bits 4 -o packed.safetensors");
  const std::string line = "eval packed.safetensors --data standin --limit 90 --batch 16 --threads 1 --mirror --force ";
  const std::string compared = line + "--compare small.safetensors ";
  succeed(compared + "--logits one.safetensors --json one.json");
  const auto facts = [&](const std::string& name) {
    nlohmann::json report = json(name);
    for (const char* key : {"seconds", "prepare_seconds", "wait_seconds", "images_per_second", "peak_bytes"})
      report.erase(key);
    report["compared_with"].erase("images_per_second");
    return report;
  };
  for (const int ranks : {2, 3}) {
    SCOPED_TRACE(ranks);
    const Outcome outcome = run_job({{ranks, compared + "--logits ranks.safetensors --json ranks.json"}});
    ASSERT_EQ(outcome.code, 0) << outcome;
    EXPECT_NE(outcome.out.find("accuracy"), std::string::npos) << outcome;
    EXPECT_EQ(outcome.out.find("peak memory"), outcome.out.rfind("peak memory")) << "more than one rank prints";
    EXPECT_TRUE(read_text(at("ranks.safetensors")) == read_text(at("one.safetensors")));
    EXPECT_EQ(facts("ranks.json"), facts("one.json"));
  }
  refuse_job({{1, line}, {1, line + "--image-size 65"}}, "rank 1 has another command than rank 0");
  refuse_job({{2, line + "--logits no/folder.safetensors"}}, "no/folder.safetensors");
}

TEST_F(RanksTest, CalibrateAndPackWithTheBytesOfOneProcess) {
  const std::string line =
      "pack small.safetensors --calibrate standin --calibration-images 90 --bits 3 --method kmeans --threads 1 "
      "--force ";
  succeed(line + "-o one.safetensors --save-calibration one.calibration --json one.json");
  for (const int ranks : {1, 2, 3}) {
    SCOPED_TRACE(ranks);
    const Outcome outcome =
        run_job({{ranks, line + "-o ranks.safetensors --save-calibration ranks.calibration --json ranks.json"}});
    ASSERT_EQ(outcome.code, 0) << outcome;
    EXPECT_EQ(outcome.out.find("packed small"), outcome.out.rfind("packed small")) << "more than one rank prints";
    EXPECT_TRUE(read_text(at("ranks.safetensors")) == read_text(at("one.safetensors")));
    EXPECT_TRUE(read_text(at("ranks.calibration")) == read_text(at("one.calibration")));
    EXPECT_EQ(json("ranks.json").at("gptq"), json("one.json").at("gptq"));
  }
  const std::string loaded =
      "pack small.safetensors --calibration one.calibration --bits 3 --method kmeans --threads 1 --force ";
  ASSERT_EQ(run_job({{2, loaded + "-o loaded.safetensors"}}).code, 0);
  succeed(loaded + "-o alone.safetensors");
  EXPECT_TRUE(read_text(at("loaded.safetensors")) == read_text(at("alone.safetensors")));

  write_standin(at("other"), 200, 100, 2);
  fs::create_directories(at("there"));
  fs::copy(at("other"), at("there/standin"), fs::copy_options::recursive);
  fs::copy_file(at("small.safetensors"), at("there/small.safetensors"));
  const std::string elsewhere = "cd there && exec \"$0\" \"$@\"";
  std::vector<std::string> words = job({{1, line + "-o never.safetensors"}, {1, line + "-o never.safetensors"}});
  words.insert(std::ranges::find(words, ":") + 3, {"/bin/sh", "-c", elsewhere});
  const Outcome outcome = Child(words, at(""), environment_, at(".there").string()).wait();
  EXPECT_NE(outcome.err.find("rank 1 has another data set than rank 0"), std::string::npos) << outcome;
  EXPECT_EQ(lines_of_tool(outcome), 1) << outcome;
  refuse_job({{2, "pack small.safetensors --calibrate standin --target-bits 3 -o never.safetensors"}},
             "targets and --max-loss choose in one process");
  EXPECT_FALSE(fs::exists(at("never.safetensors")));
}

/// A rank of eval, and one of pack, that dies or hangs while it works.
TEST_F(RanksTest, OfOtherToolsOneThatDiesOrHangsEndsAll) {
  write_standin(at("many"), 30'000, 30'000, 1);
  for (const auto& [tool, line] :
       {std::pair("eval", "eval small.safetensors --data many --batch 4 --threads 1 --rank-timeout 3"),
        {"pack",
         "pack small.safetensors --calibrate many --calibration-images 0 --bits 4 --threads 1 --force "
         "--rank-timeout 3 -o never.safetensors"}})
    for (const int signal : {SIGKILL, SIGSTOP}) {
      SCOPED_TRACE(::testing::Message() << tool << " " << signal);
      Child child(job({{2, line}}), at(""), environment_, at(".other").string());
      const std::vector<pid_t> processes = processes_of(child, 2, tool);
      ASSERT_EQ(processes.size(), 2U);
      std::this_thread::sleep_for(milliseconds(1500));
      const pid_t victim = std::ranges::max(processes);
      kill(victim, signal);
      const Outcome outcome = child.wait();
      EXPECT_NE(outcome.code, 0) << outcome;
      EXPECT_EQ(lines_of_tool(outcome), 1) << outcome;
      EXPECT_NE(outcome.err.find(signal == SIGKILL ? fmt::format("(process {}) has ended", victim)
                                                   : "has been silent for 3 s"),
                std::string::npos)
          << outcome;
    }
  EXPECT_FALSE(fs::exists(at("never.safetensors")));
}

TEST_F(RanksTest, ADiskThatIsFullEndsPack) {
  write_text(at("limited"), "#!/bin/sh\nulimit -f 20\nexec \"$@\"\n");
  fs::permissions(at("limited"), fs::perms::owner_all);
  std::vector<std::string> words =
      job({{2, "pack small.safetensors --calibrate standin --bits 8 --threads 1 -o full.safetensors"}});
  words.insert(words.begin() + 4, at("limited").string());
  const Outcome outcome = Child(words, at(""), environment_, at(".full").string()).wait();
  EXPECT_NE(outcome.code, 0) << outcome;
  EXPECT_EQ(lines_of_tool(outcome), 1) << outcome;
  EXPECT_NE(outcome.err.find("full.safetensors"), std::string::npos) << outcome;
}

}  // namespace
}  // namespace nibblenet::testing
