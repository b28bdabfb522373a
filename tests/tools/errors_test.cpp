#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "engine/core/random.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

/// Every way a tool opens a model; FILE stands for its name.
const std::vector<std::string> readers = {"eval FILE --data standin",
                                          "eval small.safetensors --data standin --compare FILE",
                                          "prune FILE --channels classifier.1=5 --calibrate standin -o out.safetensors",
                                          "pack FILE",
                                          "inspect FILE",
                                          "inspect FILE --verify",
                                          "export FILE -o out.safetensors",
                                          "bench FILE",
                                          "sweep FILE --data standin --out swept",
                                          "finetune --init FILE --data standin --image-size 64",
                                          "finetune --resume FILE --data standin"};

std::string with_file(std::string line, const std::string& name) { return line.replace(line.find("FILE"), 4, name); }

class ErrorsTest : public ToolsTest {
 protected:
  void refuse_by_all(const std::string& name) const {
    for (const std::string& reader : readers) refuse(with_file(reader, name), name, 1);
  }
  /// Nothing half-written was left behind.
  void expect_no_temporary_files() const {
    for (const auto& entry : fs::recursive_directory_iterator(at("")))
      EXPECT_NE(entry.path().extension(), ".tmp") << entry.path();
  }
};

TEST_F(ErrorsTest, FilesThatAreNoModels) {
  refuse_by_all("missing.safetensors");
  refuse_by_all("standin");  // a folder

  std::string noise(5000, '\0');
  Random random(1);
  for (char& byte : noise) byte = static_cast<char>(256 * random.uniform());
  const std::vector<std::pair<std::string, std::string>> files = {
      {"empty.safetensors", ""},
      {"noise.safetensors", noise},
      {"short.safetensors", "1234567"},
      {"zeros.safetensors", std::string(64, '\0')},
      {"html.safetensors", "<!DOCTYPE html><html><body>404</body></html>"},
      {"json.safetensors", std::string("\x09\0\0\0\0\0\0\0{\"a\":[1]}", 17)}};
  for (const auto& [name, text] : files) {
    write_text(at(name), text);
    refuse_by_all(name);
  }
}

TEST_F(ErrorsTest, TruncatedModels) {
  succeed("pack small.safetensors");
  for (const char* source : {"small.safetensors", "small_4bit.safetensors"}) {
    const std::string text = read_text(at(source));
    const auto header = static_cast<size_t>(SafetensorsFile(at(source)).header_bytes());
    for (const size_t length : {size_t{4}, size_t{8}, header / 2, header, header + 100, text.size() - 1}) {
      SCOPED_TRACE(::testing::Message() << source << " cut to " << length << " bytes");
      write_text(at("cut.safetensors"), text.substr(0, length));
      refuse_by_all("cut.safetensors");
    }
  }
}

TEST_F(ErrorsTest, TwentyFlippedBitsAreRefusedByEveryTool) {
  succeed("pack small.safetensors --compress -o packed.safetensors");
  succeed("finetune --init small.safetensors --data standin --image-size 64 --epochs 1 --out trained.safetensors");
  write_bytes(at("grey.png"), png(32, 32, Bytes(size_t{32} * 32 * 3, 128)));
  std::vector<std::string> lines = readers;
  lines.emplace_back("classify grey.png --model FILE");
  Random random(2);
  for (const std::string& line : lines) {
    const bool float_only = line.starts_with("prune") || line.starts_with("pack") || line.starts_with("sweep");
    const char* source = line.find("--resume") != line.npos ? "trained.checkpoint.safetensors"
                         : float_only                       ? "small.safetensors"
                                                            : "packed.safetensors";
    const std::string text = read_text(at(source));
    const int64_t header = SafetensorsFile(at(source)).header_bytes();
    for (int i = 0; i < 20; ++i) {
      const auto place = static_cast<size_t>(static_cast<float>(i < 10 ? header : static_cast<int64_t>(text.size())) *
                                             random.uniform());
      SCOPED_TRACE(::testing::Message() << line << ": " << source << ", byte " << place << ", bit " << i % 8);
      std::string flipped = text;
      flipped[place] = static_cast<char>(flipped[place] ^ (1 << i % 8));
      write_text(at("flipped.safetensors"), flipped);
      refuse(with_file(line, "flipped.safetensors"), "flipped.safetensors", 1);
    }
  }
}

TEST_F(ErrorsTest, ModelsOfSomethingElse) {
  StateDict foreign;
  foreign.parameters.push_back({.name = "layer.weight", .value = random_tensor({3, 4}, 1)});
  save_state_dict(at("foreign.safetensors"), foreign);
  for (const char* line :
       {"eval FILE --data standin", "pack FILE", "bench FILE", "finetune --init FILE --data standin"})
    refuse(with_file(line, "foreign.safetensors"), "AlexNet", 1);

  StateDict broken = small_alexnet(1);
  broken.at("classifier.4.weight").values().data()[100] = NAN;
  save_state_dict(at("nan.safetensors"), broken);
  refuse("pack nan.safetensors", "classifier.4.weight", 1);

  for (const float value : {NAN, INFINITY}) {
    StateDict biased = small_alexnet(1);
    biased.at("classifier.6.bias").values().data()[3] = value;
    save_state_dict(at("biased.safetensors"), biased);
    refuse("pack biased.safetensors", "classifier.6.bias", 1);
    for (const char* line : {"eval biased.safetensors", "eval small.safetensors --compare biased.safetensors",
                             "eval biased.safetensors --simulate simulated-linear:8"})
      refuse(std::string(line) + " --data standin --limit 10", "biased.safetensors: classifier.6.bias", 1);
  }
  StateDict huge = small_alexnet(1);  // finite weights, whose sums are not
  for (float& weight : huge.at("classifier.6.weight").values().view()) weight = 3e38F;
  for (float& bias : huge.at("classifier.4.bias").values().view()) bias = 10;
  save_state_dict(at("huge.safetensors"), huge);
  refuse("eval huge.safetensors --data standin --limit 10", "huge.safetensors: 100 of 100 logits", 1);

  StateDict small = small_alexnet(1);
  for (float& weight : small.at("classifier.4.weight").values().view()) weight *= 1e-9F;
  save_state_dict(at("tiny.safetensors"), small);
  refuse("pack tiny.safetensors --scale f16", "classifier.4.weight", 1);

  StateDict sized = small_alexnet(1);
  sized.metadata["image_size"] = "huge";
  save_state_dict(at("sized.safetensors"), sized);
  for (const char* line : {"eval FILE --data standin", "bench FILE"})
    refuse(with_file(line, "sized.safetensors"), "huge", 1);
  // Ten classes of images, seven in the head.
  refuse("eval seven.safetensors --data standin", "7", 2);
}

TEST_F(ErrorsTest, DataThatIsNone) {
  const std::vector<std::string> lines = {"eval small.safetensors --data ",
                                          "finetune --init small.safetensors --image-size 64 --data "};
  fs::create_directory(at("hollow"));
  write_text(at("noise.tar.gz"), "this is no archive");
  fs::copy(at("standin"), at("cut"));
  for (const auto& entry : fs::directory_iterator(at("cut")))
    if (entry.path().extension() == ".bin") fs::resize_file(entry.path(), fs::file_size(entry.path()) - 1);
  for (const std::string& line : lines) {
    refuse(line + "missing", "missing", 2);
    refuse(line + "hollow", "hollow", 1);
    refuse(line + "noise.tar.gz", "noise.tar.gz", 1);
    refuse(line + "cut", "batch", 1);
  }
}

TEST_F(ErrorsTest, WrongArguments) {
  struct Case {
    std::string command;
    std::vector<std::pair<std::string, std::string>> flags;  ///< and what the error has to mention
  };
  const std::vector<Case> cases = {{"pack small.safetensors",
                                    {{"--bits 9", "--bits"},
                                     {"--bits 1", "--bits"},
                                     {"--bits x", "--bits"},
                                     {"--bits 4.5", "--bits"},
                                     {"--bits", "--bits"},
                                     {"--method magic", "magic"},
                                     {"--method nf4 --bits 3", "nf4"},
                                     {"--method dynamic-tree --bits 2", "dynamic-tree"},
                                     {"--method nf4 --zero-point", "zero-point"},
                                     {"--zero-point --scale-sign signed", "zero-point"},
                                     {"--granularity block:0", "block:0"},
                                     {"--granularity block", "block"},
                                     {"--granularity block:-1", "block:-1"},
                                     {"--granularity tile:0x8", "tile:0x8"},
                                     {"--granularity tile:8", "tile:8"},
                                     {"--granularity columns", "columns"},
                                     {"--granularity sorted", "sorted"},
                                     {"--method stable-embedding --granularity row", "row"},
                                     {"--scale f64", "f64"},
                                     {"--scale-sign plus", "plus"},
                                     {"--layer features.0", "--layer features.0"},
                                     {"--layer =linear", "--layer =linear"},
                                     {"--layer features.0=magic", "magic"},
                                     {"--layer features.0=linear:9", "9"},
                                     {"--layer features.0=linear:8:channel:more", "more"},
                                     {"--layer nothing=linear:8:channel", "nothing"},
                                     {"--threads -1", "--threads"},
                                     {"--magic", "--magic"},
                                     {"second.safetensors", "second.safetensors"}}},
                                   {"eval small.safetensors --data standin",
                                    {{"--limit 3", "3"},
                                     {"--limit -10", "--limit"},
                                     {"--limit x", "--limit"},
                                     {"--batch 0", "--batch"},
                                     {"--split valid", "--split"},
                                     {"--image-size 62", "--image-size"},
                                     {"--device tpu", "--device"},
                                     {"--threads x", "--threads"},
                                     {"--magic", "--magic"}}},
                                   {"finetune --init small.safetensors --data standin",
                                    {{"--epochs 0", "--epochs"},
                                     {"--epochs x", "--epochs"},
                                     {"--batch 0", "--batch"},
                                     {"--lr 0", "--lr"},
                                     {"--lr nan", "--lr"},
                                     {"--lr x", "--lr"},
                                     {"--momentum 1", "--momentum"},
                                     {"--weight-decay -1", "--weight-decay"},
                                     {"--dropout 1", "--dropout"},
                                     {"--schedule linear", "linear"},
                                     {"--augment rotate", "--augment"},
                                     {"--freeze everything", "--freeze"},
                                     {"--reset head", "--reset"},
                                     {"--image-size 62", "--image-size"},
                                     {"--seed -1", "--seed"},
                                     {"--train-limit -1", "limit"},
                                     {"--train-limit 3", "3"},
                                     {"--device tpu", "--device"},
                                     {"--magic", "--magic"}}},
                                   {"inspect", {{"", "FILE"}, {"small.safetensors --magic", "--magic"}}},
                                   {"export small.safetensors",
                                    {{"-o x.gguf --to gguf", "--to"},
                                     {"--image-size 64", "--image-size is for --to onnx"},
                                     {"--to onnx --image-size 0", "--image-size"},
                                     {"--to onnx --image-size 62", "--image-size 62: must lie in 63"}}},
                                   {"bench small.safetensors",
                                    {{"--batch 0", "--batch"},
                                     {"--batch 1,x", "--batch"},
                                     {"--seconds -1", "--seconds"},
                                     {"--device tpu", "--device"},
                                     {"--magic", "--magic"}}}};
  for (const Case& c : cases)
    for (const auto& [flags, mention] : c.flags) refuse(c.command + " " + flags, mention, 2);
}

TEST_F(ErrorsTest, EmptyWordsAreNoValues) {
  for (const char* line : {"pack \"\"", "inspect small.safetensors --json \"\"", "pack small.safetensors -o \"\"",
                           "finetune --data standin --out \"\"", "classify x.png --model \"\""})
    refuse(line, " is empty", 2);
  refuse("inspect small.safetensors --json= out.json", "--json= has an empty value", 2);
}

TEST_F(ErrorsTest, OnlyJsonGoesToTheStandardOutputByADash) {
  for (const char* line :
       {"pack small.safetensors -o -", "export small.safetensors -o -", "finetune --data standin --out -",
        "eval small.safetensors --data standin --logits -", "sweep small.safetensors --data standin --out -"})
    refuse(line, "name a file", 2);
  EXPECT_FALSE(fs::exists(at("-")));
}

TEST_F(ErrorsTest, RangesOfCountsAreReadable) {
  for (const char* line : {"eval small.safetensors --limit -1", "sweep small.safetensors --limit -1",
                           "pack small.safetensors --calibrate standin --calibration-images -1"})
    refuse(line, "-1 not in range 0 to 9223372036854775807 ", 2);
  refuse("pack small.safetensors --target-bits 4 --target-images 0", "0 not in range 1 to 9223372036854775807 ", 2);
  refuse("finetune --seed -1", "-1 is not a whole number from 0 to 2^64 - 1", 2);
}

TEST_F(ErrorsTest, NamesInFilesHoldNoCommandsToATerminal) {
  StateDict dict;
  dict.parameters.push_back({.name = "a\x1b[2Jb", .value = random_tensor({3, 4}, 1)});
  save_state_dict(at("escape.safetensors"), dict);
  EXPECT_NE(succeed("inspect escape.safetensors").out.find("a?[2Jb "), std::string::npos);
}

TEST_F(ErrorsTest, ADeviceThatIsNotThere) {
  const std::string line = "eval small.safetensors --data standin --device cuda";
  if (run(line).code == 0) GTEST_SKIP() << "this machine has a GPU and the tools were built for it";
  refuse(line, "--device cuda", 2);
}

TEST_F(ErrorsTest, OutputsThatCannotBeWritten) {
  const std::vector<std::string> writers = {
      "prune small.safetensors --calibrate standin --calibration-images 20 --channels classifier.1=5 -o FILE",
      "pack small.safetensors -o FILE", "export small.safetensors -o FILE",
      "eval small.safetensors --data standin --limit 10 --logits FILE",
      "finetune --init small.safetensors --data standin --image-size 64 --epochs 1 --threads 1 --out FILE"};
  ASSERT_EQ(mkfifo(at("pipe").c_str(), 0600), 0);
  for (const std::string& writer : writers) {
    refuse(with_file(writer, "/dev/full/out"), "/dev/full", 1);
    refuse(with_file(writer, "standin"), "standin", 1);
    refuse(with_file(writer, "pipe"), "pipe", 1);
    if (!writer.starts_with("finetune")) refuse(with_file(writer, "missing/out"), "missing/out", 1);
  }
  EXPECT_FALSE(fs::exists(at("standin.checkpoint.safetensors"))) << "noticed only after the training";
  EXPECT_TRUE(fs::is_fifo(at("pipe")));

  for (const std::string line :
       {"inspect small.safetensors", "pack small.safetensors", "bench small.safetensors --batch 1 --seconds 0",
        "eval small.safetensors --data standin --limit 10"})
    for (const char* path : {"/dev/full", "/dev/full/out", "standin", "missing/out"})
      refuse(line + " --json " + path, path, 1);
  expect_no_temporary_files();
}

TEST_F(ErrorsTest, AFullDiskLeavesNothingBehind) {
  // A limit on the size of files stands in for the full disk: writing fails in the middle.
  fs::copy_file(at("small.safetensors"), at("old.safetensors"));
  for (const char* line :
       {"pack small.safetensors -o old.safetensors", "export small.safetensors -o old.safetensors"}) {
    std::vector<std::string> words = command(line);
    words.insert(words.begin(), {"/bin/sh", "-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"});
    const Outcome outcome = Child(words, at(""), environment_, at(".full").string()).wait();
    EXPECT_EQ(outcome.code, 1) << outcome;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome;
    EXPECT_NE(outcome.err.find("old.safetensors"), std::string::npos) << outcome;
    EXPECT_EQ(read_text(at("old.safetensors")), read_text(at("small.safetensors")));
  }
  expect_no_temporary_files();
}

TEST_F(ErrorsTest, AFullDiskBehindTheStandardOutput) {
  for (const char* line : {"inspect small.safetensors", "pack small.safetensors", "eval --help"}) {
    const Outcome outcome = run(line, "/dev/full");
    EXPECT_EQ(outcome.code, 1) << line << outcome;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << line << outcome;
  }
}

TEST_F(ErrorsTest, LittleAddressSpaceIsNoReasonToHang) {
  if (sanitized) GTEST_SKIP() << "sanitizers reserve terabytes";
  for (const char* tool : {"finetune", "prune", "pack", "eval", "inspect", "export", "bench", "classify", "sweep"}) {
    std::vector<std::string> words = command(fmt::format("{} --help", tool));
    words.insert(words.begin(), {"/bin/sh", "-c", "ulimit -v 200000; exec timeout 60 \"$@\"", "sh"});
    const Outcome outcome = Child(words, at(""), environment_, at(".small").string()).wait();
    EXPECT_EQ(outcome.code, 0) << tool << outcome;
  }
  // What needs OpenBLAS says so.
  std::vector<std::string> words =
      command("pack small.safetensors --calibrate standin --bits 4 --threads 1 -o x.safetensors");
  words.insert(words.begin(), {"/bin/sh", "-c", "exec timeout 60 \"$@\"", "sh"});
  environment_.emplace_back("NIBBLENET_OPENBLAS=/nowhere/libopenblas.so.0");
  const Outcome outcome = Child(words, at(""), environment_, at(".small").string()).wait();
  EXPECT_EQ(outcome.code, 1) << outcome;
  EXPECT_NE(outcome.err.find("cannot load libopenblas.so.0"), std::string::npos) << outcome;
}

TEST_F(ErrorsTest, HelpNamesEveryFlagOfTheContract) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> contract = {
      {"finetune",
       {"--data",        "--init",         "--freeze",  "--reset",    "--epochs",  "--batch",      "--lr",
        "--momentum",    "--weight-decay", "--dropout", "--schedule", "--augment", "--image-size", "--seed",
        "--train-limit", "--test-limit",   "--device",  "--resume",   "--out",     "--json",       "--threads"}},
      {"prune", {"MODEL", "--channels", "--calibrate", "--calibration", "-o", "--device", "--json", "--threads"}},
      {"pack",
       {"MODEL", "--bits", "--method", "--granularity", "--scale", "--scale-sign", "--layer", "--compress", "-o",
        "--json", "--threads"}},
      {"eval", {"MODEL", "--data", "--split", "--limit", "--batch", "--device", "--logits", "--json", "--threads"}},
      {"inspect", {"FILE", "--verify"}},
      {"export", {"FILE", "--to", "-o"}},
      {"bench", {"MODEL", "--batch", "--device", "--json", "--threads", "--seconds", "cold"}},
      {"classify", {"IMAGE", "--model", "--top", "--device", "--precision", "--threads", "--json"}}};
  for (const auto& [tool, flags] : contract) {
    const Outcome outcome = succeed(tool + " --help");
    EXPECT_EQ(outcome.err, "");
    for (const std::string& flag : flags) EXPECT_NE(outcome.out.find(flag), std::string::npos) << flag << outcome;
  }
  // The methods are listed with their widths.
  const std::string help = succeed("pack --help").out;
  for (const MethodTraits& method : method_table()) EXPECT_NE(help.find(method.name), std::string::npos) << method.name;
}

/// tools/launch in a project of its own, with scripts in place of the built programs.
class LauncherTest : public ToolsTest {
 protected:
  void SetUp() override {
    fs::create_directories(root_ / "tools");
    fs::copy(fs::path(NIBBLENET_SOURCE) / "tools/launch", root_ / "tools/launch");
    fs::create_symlink("launch", root_ / "tools/eval");
  }
  void build(const std::string& preset) const {
    const fs::path program = root_ / "build" / preset / "tools/eval";
    fs::create_directories(program.parent_path());
    write_text(program, "#!/bin/sh\necho " + preset + " \"$NIBBLENET_ROOT\" \"$1\" $#\nexit 7\n");
    fs::permissions(program, fs::perms::owner_all);
  }
  Outcome launch(const fs::path& tool, const std::vector<std::string>& arguments) const {
    std::vector<std::string> words{tool.string()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return Child(words, "/", {}, at(".launch").string()).wait();
  }
  const fs::path root_ = at("a project");
};

TEST_F(LauncherTest, SaysHowToBuild) {
  const Outcome outcome = launch(root_ / "tools/eval", {});
  EXPECT_EQ(outcome.code, 1) << outcome;
  EXPECT_EQ(outcome.err, fmt::format("eval: not built yet; run {}/tools/dev build\n", root_.string()));
}

TEST_F(LauncherTest, PassesRootArgumentsAndExitCode) {
  build("cpu");
  fs::create_directory_symlink(root_ / "tools", at("linked"));
  for (const fs::path& tool : {root_ / "tools/eval", at("linked") / "eval"}) {
    const Outcome outcome = launch(tool, {"two words", ""});
    EXPECT_EQ(outcome.code, 7) << outcome;
    EXPECT_EQ(outcome.out, fmt::format("cpu {} two words 2\n", root_.string()));
  }
}

TEST_F(LauncherTest, TakesTheCudaBuildWhereThereIsAGpu) {
  build("cpu");
  build("cuda");
  const bool gpu = fs::exists("/dev/nvidia0");
  if (!gpu && std::system("nvidia-smi -L >/dev/null 2>&1") == 0) GTEST_SKIP() << "a GPU without /dev/nvidia0";
  EXPECT_TRUE(launch(root_ / "tools/eval", {}).out.starts_with(gpu ? "cuda " : "cpu "));
}

TEST_F(LauncherTest, RunsThisProjectsTools) {
  const fs::path source = NIBBLENET_SOURCE;
  for (const char* tool : {"finetune", "prune", "pack", "eval", "inspect", "export", "bench", "classify"}) {
    if (!fs::exists(source / "build/cpu/tools" / tool)) GTEST_SKIP() << "build/cpu has no " << tool;
    const Outcome outcome = launch(source / "tools" / tool, {"--help"});
    EXPECT_EQ(outcome.code, 0) << outcome;
    EXPECT_NE(outcome.out.find(fmt::format("Usage: {}", tool)), std::string::npos) << outcome;
  }
}

}  // namespace
}  // namespace nibblenet::testing
