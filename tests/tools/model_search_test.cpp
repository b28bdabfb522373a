#include "tools/common/model_search.h"

#include <cmath>

#include "tests/engine/io/io_helpers.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

class ModelSearchTest : public ToolsTest {};

TEST_F(ModelSearchTest, EveryToolThatComputesRefusesNumbersThatAreNone) {
  write_bytes(at("cat.png"), plain_png(8, 8, {1, 2, 3}));
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    StateDict model = small_alexnet(1);
    model.at("features.3.bias").values().view()[1] = bad;
    save_state_dict(at("odd.safetensors"), model);
    const std::string data = " --data standin";
    for (const std::string& line :
         {"eval odd.safetensors" + data, std::string("classify cat.png --model odd.safetensors"),
          "finetune --init odd.safetensors --out out.safetensors" + data,
          std::string("prune odd.safetensors -o out.safetensors --channels classifier.1=5 --calibrate standin"),
          std::string("pack odd.safetensors -o out.safetensors"), "sweep odd.safetensors --out study" + data,
          std::string("bench odd.safetensors"), std::string("export odd.safetensors -o out.safetensors"),
          "eval small.safetensors --compare odd.safetensors" + data,
          "finetune --init small.safetensors --distill odd.safetensors --out out.safetensors" + data})
      refuse(line, "odd.safetensors: features.3.bias holds NaN or infinities; tools/inspect counts them", 1);
    EXPECT_FALSE(std::filesystem::exists(at("out.safetensors")));
    succeed("inspect odd.safetensors");
  }
}

}  // namespace
}  // namespace nibblenet::testing
