#include "tools/common/data_search.h"

#include <gmock/gmock.h>
#include <signal.h>

#include "tests/engine/io/io_helpers.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class UnreadableTest : public ToolsTest {
 protected:
  /// photos/: four pictures of each class in each split; five of those for training and one of
  /// those for tests cannot be read.
  void SetUp() override {
    ToolsTest::SetUp();
    uint8_t byte = 0;
    for (const std::string& name : cifar10_classes())
      for (const char* split : {"train", "test"})
        for (int i = 0; i < 4; ++i)
          write_bytes(at(fmt::format("photos/{}/{}/{}.png", split, name, i)), plain_png(32, 32, {++byte, byte, 9}));
    for (const char* name :
         {"train/cat/0.png", "train/cat/2.png", "train/dog/1.png", "train/dog/3.png", "test/cat/1.png"})
      write_text(at(std::string("photos/") + name), "<html>");
    write_text(at("photos/train/ship/4.webp"), "RIFF");
  }
};

TEST_F(UnreadableTest, EveryToolThatTakesDataCanLeaveThemOut) {
  succeed("pack small.safetensors -o packed.safetensors");
  const std::string some = "--calibration-images 0 --threads 1";
  for (const auto& [line, skipped] : std::vector<std::pair<std::string, int>>{
           {"eval packed.safetensors --data photos --threads 1", 1},
           {"eval packed.safetensors --data photos --split train --threads 1", 5},
           {"finetune --init small.safetensors --data photos --epochs 1 --out out.safetensors --threads 1", 6},
           {"sweep small.safetensors --data photos --schemes linear:8:row --out study --threads 1", 1},
           {"bench small.safetensors --compare --sides float32 --seconds 0 --rounds 1 --batch 1 --data photos", 1},
           {"pack small.safetensors -o out2.safetensors --calibrate photos " + some, 5},
           {"pack small.safetensors -o out3.safetensors --target-bits 5 --target-images 10 --data photos", 2},
           {"prune small.safetensors -o out4.safetensors --channels classifier.1=20 --calibrate photos " + some, 5}}) {
    SCOPED_TRACE(line);
    const Outcome refused = run(line);
    EXPECT_EQ(refused.code, 1) << refused;
    EXPECT_THAT(refused.err, AllOf(HasSubstr(" of "), HasSubstr("--skip-unreadable"))) << refused;
    const Outcome outcome = succeed(line + " --skip-unreadable --json out.json");
    EXPECT_THAT(outcome.err, HasSubstr("pictures that cannot be read are left out: photos/")) << outcome;
    EXPECT_EQ(json("out.json").at("data_set").at("skipped"), skipped);
  }
  // Three are named, the rest are counted.
  const Outcome outcome = succeed("eval packed.safetensors --data photos --split train --skip-unreadable");
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("warning: 5 pictures"), HasSubstr("cat/0.png"), HasSubstr("cat/2.png"),
                                 HasSubstr("dog/1.png"), Not(HasSubstr("dog/3.png")), HasSubstr("and so on")));
  succeed("eval packed.safetensors --data standin --skip-unreadable --json out.json --limit 10");
  EXPECT_EQ(json("out.json").at("data_set").at("skipped"), 0);
}

TEST_F(UnreadableTest, AResumedRunSeesTheSameImages) {
  const std::string line = "finetune --init small.safetensors --data photos --threads 1 --batch 2 --skip-unreadable ";
  succeed(line + "--epochs 200 --out whole.safetensors");
  Child child(command(line + "--epochs 200 --out cut.safetensors"), at(""), environment_, at(".cut").string());
  ASSERT_TRUE(child.wait_for("epoch 2/"));
  child.send(SIGTERM);
  const Outcome stopped = child.wait();
  ASSERT_EQ(stopped.code, 130) << stopped;
  EXPECT_THAT(stopped.err, HasSubstr("--skip-unreadable"));

  const std::string resume = "finetune --resume cut.checkpoint.safetensors --data photos --threads 1";
  refuse(resume, "5 of 41 pictures cannot be read", 1);
  const std::string html = read_text(at("photos/train/cat/0.png"));
  write_bytes(at("photos/train/cat/0.png"), plain_png(32, 32, {1, 2, 3}));  // mended, it is another data set
  const Outcome other = run(resume + " --skip-unreadable");
  EXPECT_EQ(other.code, 2) << other;
  EXPECT_THAT(other.err, HasSubstr("holds other images"));
  write_text(at("photos/train/cat/0.png"), html);
  succeed(resume + " --skip-unreadable");
  EXPECT_TRUE(same_bits(model("whole.safetensors"), model("cut.safetensors")));
}

class DataSearchTest : public ToolsTest {
 protected:
  void put(const std::string& path, const char* fixture) const {
    write_bytes(at(path), read_bytes(test_data_folder() / "cifar10_python" / fixture));
  }
};

TEST_F(DataSearchTest, FindsThePythonVersionAndSaysWhyAnotherIsPassedOver) {
  succeed("pack small.safetensors -o packed.safetensors");
  const std::string line = "eval packed.safetensors --threads 1";
  const std::vector<FileToPack> files = {
      {"cifar-10-batches-py/test_batch", read_bytes(test_data_folder() / "cifar10_python/python2")}};
  write_bytes(at("data/cifar-10-python.tar.gz"), {});
  write_tar(at("data/cifar-10-python.tar.gz"), files);
  Outcome outcome = succeed(line);
  EXPECT_THAT(outcome.out, HasSubstr("2 test images of CIFAR-10 (Python)"));
  EXPECT_EQ(outcome.err.find("passed over"), std::string::npos) << outcome;

  // torchvision leaves the archive and the folder; a broken folder is passed over.
  put("data/cifar-10-batches-py/test_batch", "numpy2_protocol5");
  outcome = succeed(line);
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("/data (found in data/)"), HasSubstr("CIFAR-10 (Python)")));
  write_text(at("data/cifar-10-batches-py/test_batch"), "\x80\x02}q");
  outcome = succeed(line);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("is passed over: "), HasSubstr("test_batch"), HasSubstr("cut off")));
  EXPECT_THAT(outcome.out, HasSubstr("cifar-10-python.tar.gz (found in data/)"));
  refuse(line + " --data data", "cut off", 1);
}

}  // namespace
}  // namespace nibblenet::testing
