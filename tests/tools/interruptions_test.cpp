#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "engine/core/random.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

/// In what surroundings a run is interrupted.
struct Surroundings {
  int threads;
  const char* instructions;  ///< the most that oneDNN may use
};
void PrintTo(const Surroundings& s, std::ostream* stream) { *stream << s.threads << " threads, " << s.instructions; }

/// How often all tests together interrupt: thirty times, or as NIBBLENET_INTERRUPTIONS says.
int interruptions() {
  const char* number = std::getenv("NIBBLENET_INTERRUPTIONS");
  return number != nullptr ? std::max(4, std::atoi(number)) : 30;
}

class InterruptionsTest : public ToolsTest {
 protected:
  static inline const std::string data = "finetune --data standin ";
  static inline const std::string from_small = data + "--image-size 64 --init small.safetensors ";
  static inline const std::string resume = data + "--resume cut.checkpoint.safetensors --threads 1";
};

class RandomInterruptionsTest : public InterruptionsTest, public ::testing::WithParamInterface<Surroundings> {};

INSTANTIATE_TEST_SUITE_P(All, RandomInterruptionsTest,
                         ::testing::Values(Surroundings{1, "AVX2"}, Surroundings{2, "AVX2"}, Surroundings{1, "ALL"},
                                           Surroundings{2, "ALL"}));

TEST_P(RandomInterruptionsTest, EndInTheBitsOfAnUndisturbedRun) {
  const int wanted = (interruptions() + 3) / 4;
  environment_.push_back(std::string("DNNL_MAX_CPU_ISA=") + GetParam().instructions);
  const std::string threads = fmt::format("--threads {} ", GetParam().threads);
  const std::string line = from_small + threads + "--freeze none --batch 10 --epochs 10 --out ";
  succeed(line + "whole.safetensors");
  const StateDict undisturbed = model("whole.safetensors");

  constexpr std::array signals = {SIGTERM, SIGINT, SIGHUP};
  Random random(static_cast<uint64_t>(GetParam().threads));
  std::string next = line + "cut.safetensors";
  int stopped = 0;
  while (stopped < wanted) {
    Child child(command(next), at(""), environment_, at(".cut").string());
    ASSERT_TRUE(child.wait_for("test images")) << child.wait();
    std::this_thread::sleep_for(milliseconds(static_cast<int>(150 * random.uniform())));
    child.send(signals[static_cast<size_t>(stopped) % signals.size()]);
    const Outcome outcome = child.wait();
    if (outcome.code == 0) {  // it was done: begin anew
      ASSERT_TRUE(same_bits(undisturbed, model("cut.safetensors"))) << "after " << stopped << " interruptions";
      fs::remove(at("cut.checkpoint.safetensors"));
      next = line + "cut.safetensors";
      continue;
    }
    ASSERT_EQ(outcome.code, 130) << "after " << stopped << " interruptions: " << outcome;
    if (outcome.err.find("before the first step") != std::string::npos) continue;
    ASSERT_NE(outcome.err.find("--resume cut.checkpoint.safetensors"), std::string::npos) << outcome;
    next = data + threads + "--resume cut.checkpoint.safetensors";
    ++stopped;
  }
  succeed(next);
  EXPECT_TRUE(same_bits(undisturbed, model("cut.safetensors")));
}

TEST_F(InterruptionsTest, BeforeTheFirstStepNothingIsWritten) {
  // Frozen features of images as large as these take a while.
  Child child(command(data + "--image-size 448 --init small.safetensors --threads 1 --out cut.safetensors"), at(""),
              environment_, at(".cut").string());
  ASSERT_TRUE(child.wait_for("test images")) << child.wait();
  child.send(SIGTERM);
  const Outcome outcome = child.wait();
  EXPECT_EQ(outcome.code, 130) << outcome;
  EXPECT_EQ(outcome.err, "finetune: stopped before the first step; nothing was written\n");
  for (const auto& entry : fs::directory_iterator(at("")))
    EXPECT_FALSE(entry.path().filename().string().starts_with("cut")) << entry.path();
}

/// A pipe that a program's standard output goes to.
class Pipe {
 public:
  explicit Pipe(const fs::path& path) : path_(path) {
    if (mkfifo(path.c_str(), 0600) != 0) fail<IoError>("cannot make a pipe at {}", path.string());
    reader_ = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  }
  ~Pipe() { close_reader(); }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  void fill() const {
    const int writer = open(path_.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    while (write(writer, "x", 1) == 1) continue;
    close(writer);
  }
  /// Until something was read.
  void read_something() const {
    char c = 0;
    while (read(reader_, &c, 1) < 1) std::this_thread::sleep_for(milliseconds(1));
  }
  void close_reader() { close(std::exchange(reader_, -1)); }

 private:
  fs::path path_;
  int reader_;
};

TEST_F(InterruptionsTest, ASecondRequestEndsAtOnceWhileTheFirstIsNotYetHeard) {
  for (const int last : {SIGINT, SIGTERM}) {
    const fs::path path = at(fmt::format("pipe{}", last));
    Pipe pipe(path);
    pipe.fill();  // the tool waits for ever in its first line
    Child child(command(from_small + "--threads 1 --out cut.safetensors"), at(""), environment_, at(".cut").string(),
                path.string());
    ASSERT_TRUE(child.wait_until_blocks(SIGTERM));
    for (const int first : {SIGHUP, SIGHUP, SIGHUP}) {  // a terminal that closes says so more than once
      child.send(first);
      std::this_thread::sleep_for(milliseconds(150));
      ASSERT_TRUE(child.running());
    }
    child.send(last);
    EXPECT_EQ(child.wait().signal, last);
  }
}

TEST_F(InterruptionsTest, AReaderThatGoesAwayStopsAndSaves) {
  const std::string line = from_small + "--threads 1 --batch 20 --epochs 30 --out ";
  succeed(line + "whole.safetensors");
  Pipe pipe(at("pipe"));
  Child child(command(line + "cut.safetensors"), at(""), environment_, at(".cut").string(), at("pipe").string());
  pipe.read_something();
  pipe.close_reader();
  const Outcome outcome = child.wait();
  EXPECT_EQ(outcome.code, 1) << outcome;
  EXPECT_NE(outcome.err.find("--resume cut.checkpoint.safetensors"), std::string::npos) << outcome;
  succeed(resume);
  EXPECT_TRUE(same_bits(model("whole.safetensors"), model("cut.safetensors")));
}

}  // namespace
}  // namespace nibblenet::testing
