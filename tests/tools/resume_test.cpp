#include <gmock/gmock.h>

#include <csignal>

#include "engine/io/dataset.h"
#include "tests/tools/run.h"
#include "tools/common/command_line.h"

namespace nibblenet::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(ShellQuoted, IsOneWordToAShell) {
  EXPECT_EQ(tools::shell_quoted("weights/a-b_c.checkpoint.safetensors"), "weights/a-b_c.checkpoint.safetensors");
  EXPECT_EQ(tools::shell_quoted("my images"), "'my images'");
  EXPECT_EQ(tools::shell_quoted("it's $HOME"), "'it'\\''s $HOME'");
  EXPECT_EQ(tools::shell_quoted(""), "''");
}

/// Runs that were stopped, and the images that they go on with.
class ResumeTest : public ToolsTest {
 protected:
  void SetUp() override {
    ToolsTest::SetUp();
    std::filesystem::rename(at("standin"), at("my images"));
    write_standin(at("others"), 200, 100, 9);
  }
  const std::string from_small_ = "finetune --init small.safetensors --train-limit 40 --test-limit 20 --batch 10 ";
};

TEST_F(ResumeTest, TheCommandThatIsPrintedGoesOn) {
  Child child(command(from_small_ + "--data \"my images\" --epochs 100000 --threads 1 --out cut.safetensors"), at(""),
              environment_, at(".run").string());
  ASSERT_TRUE(child.wait_for("epoch 1/"));
  child.send(SIGINT);
  const Outcome stopped = child.wait();
  EXPECT_EQ(stopped.code, 130) << stopped;
  EXPECT_THAT(stopped.err,
              HasSubstr(fmt::format(
                  "tools/finetune --resume cut.checkpoint.safetensors --data '{}' --threads 1 --out cut.safetensors",
                  at("my images").string())));
}

TEST_F(ResumeTest, OtherImagesAreRefusedUnlessInsistedOn) {
  succeed(from_small_ + "--data \"my images\" --epochs 1 --out a.safetensors");
  const std::string before = read_text(at("a.checkpoint.safetensors"));
  const std::string resume = "finetune --resume a.checkpoint.safetensors --epochs 2 ";
  refuse(resume + "--data others", "--other-images", 2);
  EXPECT_EQ(read_text(at("a.checkpoint.safetensors")), before);
  EXPECT_THAT(succeed(resume + "--data others --other-images --out b.safetensors").out,
              HasSubstr("the result may differ in bits from an unstopped run"));
}

TEST_F(ResumeTest, WithoutDataTheCheckpointsImagesAreTaken) {
  succeed(from_small_ + "--data \"my images\" --epochs 1 --threads 1 --out a.safetensors");
  const std::string resume = "finetune --resume a.checkpoint.safetensors --epochs 2 ";
  const Outcome same = succeed(resume + "--threads 1 --out b.safetensors");
  EXPECT_THAT(same.out, HasSubstr("my images"));
  EXPECT_THAT(same.out, Not(HasSubstr("not the bits")));
  EXPECT_THAT(succeed(resume + "--threads 2 --out c.safetensors").out, HasSubstr("2 threads in place of 1"));
}

}  // namespace
}  // namespace nibblenet::testing
