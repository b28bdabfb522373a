#include <gmock/gmock.h>

#include "engine/io/dataset.h"
#include "tests/tools/rank_jobs.h"

// Ranks that train on GPUs: each is a process whose kernels run on the CPU, and a stand-in for NCCL
// moves numbers between them.

namespace nibblenet::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class GpuRanks : public RankJobs {
 protected:
  void SetUp() override {
    RankJobs::SetUp();
    if (IsSkipped()) return;
    environment_.emplace_back("NIBBLENET_MPI_MODULE=" + module());
    environment_.emplace_back("NIBBLENET_NCCL=" NIBBLENET_FAKE_NCCL);
    environment_.emplace_back("FAKE_GPUS=3");
    write_standin(at("few"), 22, 10, 1);
  }
  /// In place of what SetUp() has set.
  void set(const std::string& name, const std::string& value) {
    std::erase_if(environment_, [&](const std::string& text) { return text.starts_with(name + "="); });
    environment_.push_back(name + "=" + value);
  }
  std::string module() const override { return NIBBLENET_MPI; }

  /// In batches of 10, 10 and 2 images: of four blocks, and of one, fewer than ranks.
  static inline const std::string training =
      "finetune --data few --image-size 64 --init small.safetensors --batch 10 --force --device cuda --blocks 3 ";

  /// What training on one GPU gives, and ranks that exchange in every way. Returns its report.
  nlohmann::json expect_same_bits(const std::string& flags) {
    const std::string line = training + flags + " --json report.json --out ";
    succeed(line + "one.safetensors");
    const std::string expected = read_text(at("one.safetensors"));
    const auto expected_checkpoint = checkpoint("one.checkpoint.safetensors");
    nlohmann::json report = json("report.json");
    const auto expect_same = [&](const Outcome& outcome, const std::string& by) {
      EXPECT_EQ(outcome.code, 0) << outcome;
      EXPECT_THAT(outcome.out, HasSubstr("ranks exchange gradients by " + by));
      EXPECT_TRUE(read_text(at("ranks.safetensors")) == expected);
      EXPECT_TRUE(checkpoint("ranks.checkpoint.safetensors") == expected_checkpoint);
      EXPECT_EQ(json("report.json").at("skipped_steps"), report.at("skipped_steps"));
    };
    const std::string ranks = line + "ranks.safetensors --exchange ";
    expect_same(run(ranks + "nccl"), "NCCL 2.");
    for (const int count : {1, 2, 3}) {
      SCOPED_TRACE(count);
      expect_same(run_job({{count, ranks + "nccl"}}), "NCCL 2.");
    }
    expect_same(run_job({{2, ranks + "mpi"}}), "MPI");
    return report;
  }
};

TEST_F(GpuRanks, TheirNumberChangesNoBit) { expect_same_bits("--freeze none --augment flip --epochs 1 --ema 0.5"); }

/// A learning rate that lets gradients leave fp16's range, on some rank first.
TEST_F(GpuRanks, TheyAgreeOnTheLossScale) {
  const nlohmann::json report = expect_same_bits("--freeze none --precision float16 --epochs 2 --lr 0.12");
  EXPECT_GT(report.at("skipped_steps"), 0);
  EXPECT_LT(report.at("skipped_steps"), 6);
}

TEST_F(GpuRanks, FrozenFeaturesAndPackedTrainingToo) {
  expect_same_bits("--freeze features --quantize linear:4:channel --epochs 1 --distill small.safetensors");
}

/// Momenta and loss scale come back on other numbers of GPUs.
TEST_F(GpuRanks, ACheckpointGoesOnWithAnotherNumber) {
  const std::string line = training + "--freeze none --precision float16 --lr 0.12 --out ";
  succeed(line + "one.safetensors --epochs 2");
  ASSERT_EQ(run_job({{2, line + "ranks.safetensors --epochs 1"}}).code, 0);
  const std::string resume = "finetune --resume ranks.checkpoint.safetensors --device cuda --epochs 2";
  const Outcome resumed = run_job({{3, resume}});
  EXPECT_EQ(resumed.code, 0) << resumed;
  EXPECT_TRUE(read_text(at("ranks.safetensors")) == read_text(at("one.safetensors")));
  EXPECT_TRUE(checkpoint("ranks.checkpoint.safetensors") == checkpoint("one.checkpoint.safetensors"));
}

TEST_F(GpuRanks, AFastSumIsTheSameButForRounding) {
  const std::string plain = std::regex_replace(training, std::regex("--blocks 3 "), "") + "--freeze none --epochs 1 ";
  succeed(plain + "--json plain.json --out plain.safetensors");
  for (const char* exchange : {"nccl", "mpi"}) {
    const Outcome fast = run_job(
        {{3, fmt::format("{} --reduce fast --exchange {} --json fast.json --out fast.safetensors", plain, exchange)}});
    ASSERT_EQ(fast.code, 0) << fast;
    EXPECT_NEAR(json("fast.json").at("test_loss").get<double>(), json("plain.json").at("test_loss").get<double>(),
                1e-3);
    EXPECT_NEAR(json("fast.json").at("epochs")[0].at("loss").get<double>(),
                json("plain.json").at("epochs")[0].at("loss").get<double>(), 1e-3);
  }
}

TEST_F(GpuRanks, EvaluateWithTheBitsOfOne) {
  const std::string line = "eval small.safetensors --data few --batch 4 --device cuda --force --logits ";
  succeed(line + "one.safetensors");
  for (const char* gpus : {"1", "3"}) {
    set("FAKE_GPUS", gpus);
    const Outcome outcome = run_job({{2, line + "ranks.safetensors"}});
    EXPECT_EQ(outcome.code, 0) << outcome;
    EXPECT_TRUE(read_text(at("ranks.safetensors")) == read_text(at("one.safetensors"))) << gpus;
  }
}

TEST_F(GpuRanks, EachHasAGpuOfItsOwnUnlessTheyExchangeByMpi) {
  const std::string line = training + "--freeze none --epochs 1 --out few.safetensors ";
  set("FAKE_GPUS", "2");
  for (const char* exchange : {"", "--exchange nccl"})
    refuse_job({{3, line + exchange}}, "ranks 0 and 2 have one GPU: start as many ranks on a machine as it has GPUs");
  const Outcome shared = run_job({{3, line + "--exchange mpi"}});
  EXPECT_EQ(shared.code, 0) << shared;
}

TEST_F(GpuRanks, WhatCannotBeIsRefused) {
  const auto line = [](const std::string& flags) {
    return "finetune --data few --image-size 64 --init small.safetensors --batch 10 --force --freeze none --epochs 1 "
           "--out never.safetensors " +
           flags;
  };
  refuse(line("--device cpu --blocks 3 --exchange nccl"), "--exchange nccl moves numbers between GPUs", 2);
  refuse(line("--device cuda --exchange mpi"), "--exchange is for ranks", 2);
  refuse(line("--device cudnn --blocks 3"), "--device cudnn", 2);
  const std::string cuda = line("--device cuda --blocks 3");
  refuse_job({{1, cuda}, {1, cuda + " --exchange mpi"}}, "rank 1 has another --exchange than rank 0");
  refuse_job({{1, cuda}, {1, line("--device cpu --blocks 3")}}, "rank 1 has another --device than rank 0");
  set("NIBBLENET_NCCL", at("missing.so").string());
  refuse_job({{2, cuda + " --exchange nccl"}}, "--exchange nccl: cannot load libnccl.so.2");
  EXPECT_FALSE(std::filesystem::exists(at("never.safetensors")));
  const Outcome without = run_job({{2, cuda}});
  EXPECT_EQ(without.code, 0) << without;
  EXPECT_THAT(without.out, HasSubstr("cannot load libnccl.so.2"));
  EXPECT_THAT(without.out, HasSubstr("ranks exchange gradients by MPI"));
}

TEST_F(GpuRanks, AnErrorOfNcclEndsAllWithOneLine) {
  set("FAKE_NCCL_FAILS", "5");
  refuse_job({{2, training + "--freeze none --epochs 1 --exchange nccl --out never.safetensors"}},
             "waiting for other ranks: NCCL says: unhandled system error (as the stand-in says)");
}

TEST_F(GpuRanks, OneThatDiesOrHangsEndsAll) {
  const std::string line =
      training + "--freeze none --epochs 1000 --exchange nccl --rank-timeout 8 --out never.safetensors";
  for (const int signal : {SIGKILL, SIGSTOP})
    for (const bool first : {false, true}) {
      SCOPED_TRACE(::testing::Message() << signal << " " << first);
      Child child(job({{2, line}}), at(""), environment_, at(".other").string());
      ASSERT_TRUE(child.wait_for("epoch 1/"));
      const std::vector<pid_t> processes = processes_of(child, 2);
      ASSERT_EQ(processes.size(), 2U);
      const pid_t victim = first ? std::ranges::min(processes) : std::ranges::max(processes);
      kill(victim, signal);
      const Outcome outcome = child.wait();
      EXPECT_NE(outcome.code, 0) << outcome;
      EXPECT_LE(lines_of_tool(outcome), 1) << outcome;
      // mpirun may end the other while that computes, before it looks.
      const bool silenced = signal == SIGKILL && lines_of_tool(outcome) == 0;
      const std::string line_of_other =
          signal == SIGKILL ? fmt::format("(process {}) has ended", victim) : "has been silent for 8 s";
      EXPECT_TRUE(silenced || outcome.err.find(line_of_other) != std::string::npos) << outcome;
    }
}

}  // namespace
}  // namespace nibblenet::testing
