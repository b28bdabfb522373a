#include "tools/common/model_card.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "tests/support/small_network.h"
#include "tests/tools/run.h"
#include "tools/common/report.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;
using namespace nibblenet::tools;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class ModelCardTest : public ToolsTest {
 protected:
  std::string card() const { return read_text(at("README.md")); }
};

TEST_F(ModelCardTest, HoldsTheLedger) {
  succeed("pack small.safetensors --method linear --bits 4 -o packed.safetensors --card README.md --json pack.json");
  EXPECT_THAT(card(), StartsWith("---\nlibrary_name: nibblenet\npipeline_tag: image-classification\ntags:\n"));
  EXPECT_THAT(card(), HasSubstr("\n---\n\n# packed\n\nAlexNet with 37,669 weights of "));
  EXPECT_THAT(card(), HasSubstr("| features.0 | `linear:4:channel` | 3,267 |"));
  EXPECT_THAT(card(), HasSubstr("tools/eval packed.safetensors --data DATA\n"));
  EXPECT_THAT(card(), Not(HasSubstr("model-index")));
  EXPECT_THAT(card(), Not(HasSubstr("Evaluation")));
  const nlohmann::json size = json("pack.json").at("size");
  EXPECT_THAT(card(), HasSubstr(fmt::format("| {} | {} |\n", thousands(size.at("file").get<int64_t>()),
                                            thousands(size.at("resident").at("total").get<int64_t>()))));
  EXPECT_EQ(json("pack.json").at("card"), "README.md");
  EXPECT_TRUE(json("pack.json").at("evaluation").is_null());
}

TEST_F(ModelCardTest, HoldsTheAccuracyThatEvalFinds) {
  succeed("pack small.safetensors --bits 4 -o packed.safetensors --card README.md --data standin --json pack.json");
  succeed("eval packed.safetensors --data standin --json eval.json");
  const nlohmann::json eval = json("eval.json"), pack = json("pack.json").at("evaluation");
  EXPECT_EQ(pack.at("correct"), eval.at("correct"));
  EXPECT_EQ(pack.at("images"), 100);
  EXPECT_EQ(pack.at("loss"), eval.at("loss"));
  EXPECT_THAT(card(), HasSubstr("model-index:\n- name: \"packed\"\n  results:\n  - task:\n"));
  EXPECT_THAT(card(), HasSubstr(fmt::format("    - type: accuracy\n      value: {:.4f}\n---\n",
                                            eval.at("accuracy").get<double>())));
  EXPECT_THAT(card(), HasSubstr(fmt::format("({} of 100 test images of stand-in;", eval.at("correct").get<int>())));
}

TEST_F(ModelCardTest, APackedModelThatIsRewrittenGetsOne) {
  succeed("pack small.safetensors --bits 4 -o packed.safetensors");
  succeed("pack packed.safetensors --compress -o smaller.safetensors --card README.md");
  EXPECT_THAT(card(), HasSubstr("# smaller\n"));
}

TEST_F(ModelCardTest, ReplacesACardAndNothingElse) {
  write_text(at("README.md"), "# My notes\n");
  const std::string line = "pack small.safetensors -o packed.safetensors --card README.md";
  refuse(line, "--card README.md exists and holds something else", 2);
  EXPECT_FALSE(fs::exists(at("packed.safetensors")));
  succeed(line + " --force");
  succeed(line);
  refuse("pack small.safetensors -o README.md", "README.md exists and holds a model card", 2);
  refuse("pack small.safetensors -o a.safetensors --card a.safetensors", "is the packed model's own file", 2);
  refuse("pack small.safetensors --dry-run --card README.md", "leave --card out", 2);
  refuse("pack small.safetensors --card -", "name a file", 2);
  refuse("pack small.safetensors -o b.safetensors --card c.md --data missing", "missing", 2);
  EXPECT_FALSE(fs::exists(at("b.safetensors")));
}

/// Names may hold anything: they show as they are and break neither table nor YAML.
TEST_F(ModelCardTest, NamesAreText) {
  const CardFacts facts{.model = "a \"b\"|c.safetensors",
                        .network = "AlexNet",
                        .image_size = 64,
                        .classes = {"<b>", "x|y", "two\nlines"},
                        .metadata = {{"range", "search|max"}, {"scheme:w", "linear"}, {"format", "nibblenet-packed"}},
                        .evaluation = CardEvaluation{.data = "a \"set\"", .images = 4, .correct = 1, .loss = 2}};
  const std::string text = model_card(facts);
  EXPECT_THAT(text, HasSubstr("- name: \"a \\\"b\\\"|c\"\n"));
  EXPECT_THAT(text, HasSubstr("name: \"a \\\"set\\\"\"\n"));
  EXPECT_THAT(text, HasSubstr("Classes: \\<b\\>, x\\|y, two?lines.\n"));
  EXPECT_THAT(text, HasSubstr("| range | search\\|max |\n"));
  EXPECT_THAT(text, Not(HasSubstr("nibblenet-packed")));
  EXPECT_THAT(text, HasSubstr("tools/eval 'a \"b\"|c.safetensors' --data DATA\n"));
  EXPECT_THAT(text, HasSubstr("value: 0.2500\n"));
}

}  // namespace
}  // namespace nibblenet::testing
