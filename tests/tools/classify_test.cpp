#include <fmt/format.h>
#include <sys/stat.h>

#include <cmath>

#include "engine/core/random.h"
#include "engine/io/dataset.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

class ClassifyTest : public ToolsTest {
 protected:
  void write_picture(const std::string& name, int width, int height, uint64_t seed) const {
    Bytes rgb(static_cast<size_t>(width * height) * 3);
    Random random(seed);
    for (size_t i = 0; i < rgb.size(); ++i)  // a slope of one colour with noise, so that pictures differ
      rgb[i] = static_cast<uint8_t>((40 * (seed + i % 3) + i * 200 / rgb.size()) % 200 + random.below(50));
    write_bytes(at(name), png(width, height, rgb));
  }

  nlohmann::json results(const std::string& line) const {
    succeed("classify " + line + " --json out.json");
    return json("out.json").at("results");
  }
};

/// Pictures of one size, and of many, give what `eval` gives for them as a data set: the same
/// classes, and the softmax of its logits. Those of one small size are folded, unless asked not to.
TEST_F(ClassifyTest, AgreesWithEval) {
  int number = 0;
  const std::vector<std::pair<int, int>> sizes = {{32, 32}, {1, 1}, {300, 40}, {31, 217}, {64, 64}, {150, 140}};
  for (const std::string& name : cifar10_classes()) {
    for (int i = 0; i < 4; ++i, ++number) {
      write_picture(fmt::format("same/test/{}/{}.png", name, i), 32, 32, static_cast<uint64_t>(number));
      const auto [width, height] = sizes[static_cast<size_t>(number) % sizes.size()];
      write_picture(fmt::format("mixed/test/{}/{}.png", name, i), width, height, static_cast<uint64_t>(number));
    }
  }
  succeed("pack small.safetensors --bits 4 -o packed.safetensors");
  for (const auto& [set, fold, flag] : {std::tuple<std::string, std::string, std::string>{"same", " --fold-first", ""},
                                        {"same", "", " --no-fold-first"},
                                        {"mixed", "", ""}})
    for (const std::string model : {"small.safetensors", "packed.safetensors"}) {
      SCOPED_TRACE(set + flag + " " + model);
      succeed(fmt::format("eval {} --data {} --logits logits.safetensors{}", model, set, fold));
      const Tensor<float> logits = golden(SafetensorsFile(at("logits.safetensors")), "logits");
      const nlohmann::json found = results(fmt::format("{}/test --model {} --top 10{}", set, model, flag));
      EXPECT_EQ(json("out.json").at("first_folded"), !fold.empty());
      ASSERT_EQ(found.size(), 40U);
      for (size_t i = 0; i < found.size(); ++i) {
        const auto row = logits.view().span().subspan(10 * i, 10);
        double sum = 0;
        for (const float logit : row) sum += std::exp(static_cast<double>(logit));
        EXPECT_EQ(found[i].at("top")[0].at("label"), std::ranges::max_element(row) - row.begin()) << found[i];
        double previous = 1;
        for (const auto& guess : found[i].at("top")) {
          const auto label = guess.at("label").get<size_t>();
          EXPECT_EQ(guess.at("class"), cifar10_classes()[label]);
          const double probability = guess.at("probability");
          EXPECT_NEAR(probability, std::exp(static_cast<double>(row[label])) / sum, 1e-5);
          EXPECT_LE(probability, previous);
          previous = probability;
        }
      }
    }
}

TEST_F(ClassifyTest, OneIsABlockAndManyAreATable) {
  write_picture("a.png", 40, 50, 1);
  write_bytes(at("b.jpg"), grey_jpeg());
  EXPECT_EQ(run("classify a.png --model small.safetensors", "/dev/full").code, 1) << "a full disk";
  const Outcome one = succeed("classify a.png --model small.safetensors --top 2");
  EXPECT_NE(one.out.find("a.png (40 x 50 pixels)\n"), std::string::npos) << one;
  EXPECT_EQ(std::ranges::count(one.out, '%'), 2) << one;
  const Outcome two = succeed("classify a.png b.jpg --model small.safetensors --top 99");
  EXPECT_EQ(std::ranges::count(two.out, '%'), 20) << two;
  EXPECT_NE(two.out.find("\na.png  "), std::string::npos) << two;
  EXPECT_NE(two.out.find("\nb.jpg  "), std::string::npos) << two;
}

TEST_F(ClassifyTest, ABrokenImageDoesNotStopTheOthers) {
  write_picture("good.png", 40, 50, 1);
  write_text(at("broken.jpg"), "no picture");
  write_bytes(at("huge.png"), png_of_stream(65540, 65540, {1, 2, 3}));
  ASSERT_EQ(mkfifo(at("pipe.png").c_str(), 0600), 0);
  const std::string line =
      "classify broken.jpg good.png huge.png missing.png pipe.png good.png --model small.safetensors --json out.json";
  const Outcome outcome = run(line);
  EXPECT_EQ(outcome.code, 1) << outcome;
  EXPECT_EQ(outcome.err, "classify: error: 4 of 6 images could not be classified; their lines say why\n");
  EXPECT_EQ(json("out.json").at("failed"), 4);
  const nlohmann::json found = json("out.json").at("results");
  for (const auto& [index, mention] :
       {std::pair{0, "no JPEG, PNG or BMP"}, {2, "65540 x 65540 pixels"}, {3, "No such"}, {4, "neither"}}) {
    EXPECT_NE(found[static_cast<size_t>(index)].at("error").get<std::string>().find(mention), std::string::npos);
    EXPECT_NE(outcome.out.find(found[static_cast<size_t>(index)].at("error")), std::string::npos);
  }
  EXPECT_EQ(found[1].at("top"), found[5].at("top"));
  EXPECT_EQ(results("good.png --model small.safetensors")[0].at("top")[0].at("class"),
            found[1].at("top")[0].at("class"));

  for (const char* name : {"broken.jpg", "huge.png", "missing.png", "pipe.png"})
    refuse(fmt::format("classify {} --model small.safetensors", name), name, 1);
}

/// Folding is for small pictures of one size, whose enlargement saves work; broken ones among them
/// change nothing.
TEST_F(ClassifyTest, FoldsWhatItCan) {
  for (const char* name : {"a.png", "b.png"}) write_picture(name, 32, 32, 1);
  write_picture("wide.png", 64, 32, 2);
  write_picture("large.png", 300, 200, 3);
  write_text(at("broken.png"), "no picture");
  const auto folds = [&](const std::string& pictures) {
    const Outcome outcome = run("classify " + pictures + " --model small.safetensors --json out.json");
    const bool folded = json("out.json").at("first_folded");
    EXPECT_EQ(outcome.out.find(", first convolution folded)") != std::string::npos, folded) << outcome;
    return folded;
  };
  EXPECT_TRUE(folds("a.png"));
  EXPECT_TRUE(folds("wide.png")) << "not square, but of one size";
  EXPECT_TRUE(folds("broken.png a.png b.png"));
  const nlohmann::json mixed = json("out.json").at("results");
  EXPECT_NE(mixed[0].at("error").get<std::string>().find("no JPEG, PNG or BMP"), std::string::npos);
  EXPECT_EQ(mixed[1].at("top"), mixed[2].at("top"));
  EXPECT_FALSE(folds("large.png"));
  EXPECT_FALSE(folds("a.png wide.png"));
  EXPECT_FALSE(folds("a.png --no-fold-first"));
}

TEST_F(ClassifyTest, FoldersGiveTheirPictures) {
  for (const char* name : {"photos/b.png", "photos/more/a.PNG", "photos/.hidden.png"}) write_picture(name, 8, 8, 3);
  write_text(at("photos/notes.txt"), "no picture");
  const nlohmann::json found = results("photos --model small.safetensors");
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0].at("image"), "photos/b.png");
  EXPECT_EQ(found[1].at("image"), "photos/more/a.PNG");
  write_text(at("photos/c.webp"), "a picture of a kind that is not read");
  EXPECT_EQ(run("classify photos --model small.safetensors").code, 1);
  fs::create_directory(at("hollow"));
  refuse("classify hollow --model small.safetensors", "hollow", 2);
}

TEST_F(ClassifyTest, ClassesAreCalledByTheModelsNamesElseCifar10sElseNumbers) {
  write_picture("a.png", 8, 8, 3);
  const auto classes = [&](const std::string& name) {
    std::vector<std::string> found(20);
    const nlohmann::json report = results("a.png --top 20 --model " + name);
    for (const auto& guess : report[0].at("top")) found.at(guess.at("label").get<size_t>()) = guess.at("class");
    std::erase(found, "");
    return found;
  };
  const auto& cifar = cifar10_classes();
  EXPECT_EQ(classes("small.safetensors"), std::vector<std::string>(cifar.begin(), cifar.end()));
  EXPECT_EQ(classes("seven.safetensors"), (std::vector<std::string>{"0", "1", "2", "3", "4", "5", "6"}));

  StateDict dict = model("seven.safetensors");
  dict.metadata["classes"] = R"(["a","b","c","d","e","f","g"])";
  save_state_dict(at("named.safetensors"), dict);
  EXPECT_EQ(classes("named.safetensors"), (std::vector<std::string>{"a", "b", "c", "d", "e", "f", "g"}));
  for (const char* wrong : {R"(["a","b"])", R"([1,2,3,4,5,6,7])", "a,b,c,d,e,f,g", "{}"}) {
    dict.metadata["classes"] = wrong;
    save_state_dict(at("wrong.safetensors"), dict);
    refuse("classify a.png --model wrong.safetensors", "'classes'", 1);
  }

  // Training gives a model the names of its data's classes, and packing keeps them.
  succeed(
      "finetune --data standin --image-size 64 --threads 1 --epochs 1 --init small.safetensors --out new.safetensors");
  succeed("pack new.safetensors -o new_packed.safetensors");
  const auto& standin = standin_classes();
  EXPECT_EQ(classes("new_packed.safetensors"), std::vector<std::string>(standin.begin(), standin.end()));
}

TEST_F(ClassifyTest, NamesOfAnyBytesAreShownAndWritten) {
  const std::string name = "odd\x1B[31m\xFF.png";
  write_picture(name, 8, 8, 3);
  const Outcome outcome = succeed("classify " + name + " --model small.safetensors --json out.json");
  EXPECT_EQ(outcome.out.find('\x1B'), std::string::npos);
  EXPECT_EQ(json("out.json").at("results").size(), 1U);
}

TEST_F(ClassifyTest, WrongArguments) {
  write_picture("a.png", 8, 8, 3);
  refuse("classify", "IMAGE", 2);
  refuse("classify a.png", "weights", 2);
  refuse("classify a.png --model missing.safetensors", "missing.safetensors", 1);
  for (const char* flag : {"--top", "--device", "--threads", "--precision", "--magic"})
    refuse(fmt::format("classify a.png --model small.safetensors {} x", flag), flag, 2);
  refuse("classify a.png --model small.safetensors --top 0", "--top", 2);
}

}  // namespace
}  // namespace nibblenet::testing
