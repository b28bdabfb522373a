#include "engine/io/pth.h"

#include <fmt/format.h>

#include <cstring>

#include "engine/io/download.h"
#include "tests/engine/io/pth_helpers.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

/// small.safetensors as PyTorch would have saved it: small.pth.
class PthToolsTest : public ToolsTest {
 protected:
  void SetUp() override {
    ToolsTest::SetUp();
    save_pth(at("small.pth"), model("small.safetensors"));
  }

  /// small.pth with one bit of a bias changed.
  std::string damaged() const {
    std::string content = read_text(at("small.pth"));
    const PthFile file(at("small.pth"));
    const auto bias = testing::tensor_named(file, "classifier.6.bias").storage;
    const size_t place = content.find(std::string(bias.begin(), bias.end()));
    content[place] = static_cast<char>(content[place] ^ 1);
    return content;
  }

  std::string digits(const std::string& file) const { return digest_of_file(at(file), Digest::sha256).substr(0, 8); }

  /// A manifest of one model, whose file lies in a folder instead of the network.
  void publish(const std::string& file, const std::string& prefix) const {
    fs::create_directories(at("weights"));
    write_text(at("weights/manifest.json"),
               fmt::format(R"([{{"name": "imagenet", "url": "file://{}", "bytes": {}, "sha256_prefix": "{}"}}])",
                           at(file).string(), fs::exists(at(file)) ? fs::file_size(at(file)) : 1000, prefix));
  }
};

TEST_F(PthToolsTest, EveryToolTakesIt) {
  fs::copy(at("small.pth"), at("model_final_frozen_alexnet"));
  fs::copy(at("small.pth"), at("small.pt"));
  for (const std::string name : {"small.pth", "small.pt", "model_final_frozen_alexnet"}) {
    succeed("eval " + name + " --data standin --image-size 64 --json eval.json");
    succeed("eval small.safetensors --data standin --json expected.json");
    EXPECT_EQ(json("eval.json").at("accuracy"), json("expected.json").at("accuracy"));
    EXPECT_EQ(json("eval.json").at("loss"), json("expected.json").at("loss"));
    EXPECT_EQ(json("eval.json").at("size").at("file"), fs::file_size(at(name)));
    succeed("pack " + name + " -o packed.safetensors");
    succeed("pack small.safetensors -o expected.safetensors");
    EXPECT_TRUE(same_bits(dequantized(model("packed.safetensors")), dequantized(model("expected.safetensors"))));
    succeed("bench " + name + " --batch 1 --seconds 0");
    succeed("finetune --init " + name +
            " --data standin --image-size 64 --epochs 1 --threads 1 --out tuned.safetensors");
    succeed("inspect " + name + " --verify --json inspect.json");
    EXPECT_EQ(json("inspect.json").at("verified"), 16 + 3);
    EXPECT_EQ(json("inspect.json").at("tensors").size(), 16U);
  }
}

TEST_F(PthToolsTest, ExportsGoThereAndBack) {
  for (const char* line :
       {"export small.safetensors --to pth -o a.pth", "export a.pth --to safetensors -o b.safetensors",
        "export b.safetensors --to pth -o c.pth", "export a.pth --to pth -o d.pth"})
    succeed(line);
  EXPECT_TRUE(same_bits(model("small.safetensors"), model("b.safetensors")));
  EXPECT_EQ(read_text(at("a.pth")), read_text(at("c.pth")));
  EXPECT_EQ(read_text(at("a.pth")), read_text(at("d.pth")));
  succeed("pack small.safetensors -o packed.safetensors");
  succeed("export packed.safetensors --to pth -o float.pth");
  EXPECT_TRUE(same_bits(dequantized(model("packed.safetensors")), model("float.pth")));
}

TEST_F(PthToolsTest, WrongChecksumsWarnOrWithStrictFail) {
  write_text(at("damaged.pth"), damaged());
  const Outcome outcome = succeed("pack damaged.pth -o packed.safetensors");
  EXPECT_NE(outcome.err.find("warning: damaged.pth: CRC-32 of 'archive/data/15'"), std::string::npos) << outcome;
  for (const std::string line : {"pack damaged.pth -o strict.safetensors", "inspect damaged.pth", "bench damaged.pth",
                                 "export damaged.pth -o strict.safetensors", "eval damaged.pth --data standin",
                                 "finetune --init damaged.pth --data standin --image-size 64"})
    refuse(line + " --strict", "CRC-32", 1);
  refuse("inspect damaged.pth --verify", "CRC-32", 1);
  EXPECT_FALSE(fs::exists(at("strict.safetensors")));
  succeed("pack small.pth -o strict.safetensors --strict");
}

TEST_F(PthToolsTest, AKeyIsForAFileOfAnotherProgram) {
  StateDict two = model("small.safetensors");
  const StateDict other = model("small.safetensors");
  for (Parameter& parameter : two.parameters) parameter.name = "gen." + parameter.name;
  for (const Parameter& parameter : other.parameters)
    two.parameters.push_back({.name = "disc." + parameter.name, .value = parameter.dequantized()});
  save_pth(at("two.pth"), two);
  const std::string eval = " --data standin --limit 10 --image-size 64 --key disc";
  refuse("inspect two.pth --key none", "nothing under it; it has 'gen.", 2);
  succeed("eval two.pth" + eval);
  succeed("eval two.pth --compare small.safetensors" + eval);
  succeed("eval small.safetensors --compare two.pth" + eval);
  for (const char* line : {"inspect small.safetensors --key disc", "pack small.safetensors --key disc",
                           "eval small.safetensors --compare seven.safetensors --data standin --key disc"})
    refuse(line, "--key disc: small.safetensors is of nibblenet's own format and holds one model, 'features.0.", 2);
}

TEST_F(PthToolsTest, HostileFilesAreRefusedInOneLine) {
  const std::string whole = read_text(at("small.pth"));
  write_text(at("cut.pth"), whole.substr(0, whole.size() / 2));
  write_text(at("attack.pth"),
             zip_file(call("os", "system", tuple(text("touch " + at("run").string()))), {floats({1, 2})}));
  write_text(at("foreign.pth"), zip_file(two_floats(), {floats({1, 2})}));
  for (const auto& [file, mention] :
       {std::pair{"cut.pth", "cut off"}, {"attack.pth", "os.system"}, {"foreign.pth", "AlexNet"}})
    for (const std::string line :
         {"eval FILE --data standin", "pack FILE -o out.safetensors", "bench FILE",
          "export FILE --to pth -o out.safetensors", "finetune --init FILE --data standin --out out.safetensors"}) {
      std::string command = line;
      refuse(command.replace(command.find("FILE"), 4, file), mention, 1);
    }
  EXPECT_FALSE(fs::exists(at("run")));
  EXPECT_FALSE(fs::exists(at("out.safetensors")));
}

TEST_F(PthToolsTest, TheNewestOfThemIsFound) {
  fs::create_directories(at("weights"));
  publish("small.pth", digits("small.pth"));
  save_state_dict(at("weights/old.safetensors"), model("small.safetensors"));
  save_pth(at("weights/new.pth"), model("small.safetensors"));
  fs::copy(at("small.pth"), at("weights/small.pth"));  // published by somebody: nobody's fine-tuned model
  const auto now = fs::file_time_type::clock::now();
  fs::last_write_time(at("weights/small.pth"), now);
  fs::last_write_time(at("weights/new.pth"), now - std::chrono::seconds(10));
  fs::last_write_time(at("weights/old.safetensors"), now - std::chrono::seconds(20));
  EXPECT_NE(succeed("pack").out.find("weights/new.pth"), std::string::npos);
}

TEST_F(PthToolsTest, HashesInNamesAreVerified) {
  fs::copy(at("small.pth"), at("net-" + digits("small.pth") + ".pth"));
  fs::copy(at("small.pth"), at("net-01234567.pth"));
  const std::string line = " --data standin --image-size 64 --epochs 1 --threads 1 --out tuned.safetensors";
  succeed("finetune --init net-" + digits("small.pth") + ".pth" + line);
  refuse("finetune --init net-01234567.pth" + line, "its name says 01234567", 1);
}

TEST_F(PthToolsTest, PublishedModelsAreFetchedOnceAndGetANewTail) {
  // The published head fits the data. The tail is new all the same, as in the notebooks.
  publish("small.pth", digits("small.pth"));
  succeed("finetune --init imagenet --fetch");
  EXPECT_EQ(read_text(at("weights/small.pth")), read_text(at("small.pth")));
  fs::rename(at("small.pth"), at("elsewhere.pth"));
  succeed("finetune --init imagenet --data standin --image-size 64 --epochs 1 --threads 1 --out tuned.safetensors");
  const StateDict tuned = model("tuned.safetensors"), small = model("small.safetensors");
  for (const std::string& name : feature_names(alexnet))
    EXPECT_TRUE(
        std::ranges::equal(tuned.at(name + ".weight").values().view(), small.at(name + ".weight").values().view()))
        << name;
  EXPECT_EQ(tuned.at("classifier.1.weight").shape(), small.at("classifier.1.weight").shape());
  EXPECT_EQ(tuned.at("classifier.4.weight").shape(), (Shape{1024, 67}));
  EXPECT_EQ(tuned.at("classifier.6.weight").shape(), (Shape{10, 1024}));
}

TEST_F(PthToolsTest, PublishedModelsThatCannotBeHad) {
  publish("absent.pth", "01234567");
  refuse("finetune --init imagenet --data standin", "put it into", 1);
  publish("small.pth", "01234567");
  refuse("finetune --init imagenet --data standin", "is not the expected file: its SHA-256", 1);
  write_text(at("weights/manifest.json"), "{");
  refuse("finetune --init imagenet --data standin", "manifest.json", 1);
}

}  // namespace
}  // namespace nibblenet::testing
