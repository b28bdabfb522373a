#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "engine/io/dataset.h"
#include "engine/quant/error.h"
#include "engine/quant/simulate.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;

class PackTest : public ToolsTest {
 protected:
  /// "linear:4:channel" of every weight in a packed file.
  std::map<std::string, std::string> schemes(const std::string& name) const {
    std::map<std::string, std::string> result;
    const StateDict dict = model(name);
    for (const Parameter& parameter : dict.parameters)
      if (parameter.packed()) result[parameter.name] = to_string(parameter.packed_values().scheme);
    return result;
  }

  /// The file holds exactly what the library makes of small.safetensors.
  void expect_packed_by(const Scheme& scheme, const std::string& name) const {
    StateDict expected = model("small.safetensors");
    pack_all(expected, scheme);
    const StateDict actual = model(name);
    ASSERT_EQ(actual.parameters.size(), expected.parameters.size());
    for (const Parameter& parameter : expected.parameters) {
      const Parameter& other = actual.at(parameter.name);
      ASSERT_EQ(other.packed(), parameter.packed()) << parameter.name;
      if (!parameter.packed()) {
        EXPECT_TRUE(std::ranges::equal(other.values().view(), parameter.values().view())) << parameter.name;
        continue;
      }
      const PackedTensor &a = other.packed_values(), &b = parameter.packed_values();
      EXPECT_EQ(a.scheme, b.scheme) << parameter.name;
      EXPECT_TRUE(a.codes == b.codes && a.scales == b.scales && a.block_ids == b.block_ids && a.codebook == b.codebook)
          << parameter.name;
    }
  }
};

TEST_F(PackTest, BitsAloneTakeTheMeasuredSchemesAndNameTheOutput) {
  for (int bits = 2; bits <= 8; ++bits) {
    succeed(fmt::format("pack small.safetensors --bits {}", bits));
    const StateDict floats = model("small.safetensors");
    for (const auto& [weight, scheme] : schemes(fmt::format("small_{}bit.safetensors", bits)))
      EXPECT_EQ(scheme, to_string(default_scheme_of(measured_schemes, floats.at(weight).shape(), bits))) << weight;
  }
  fs::remove(at("small_4bit.safetensors"));
  succeed("pack small.safetensors");
  EXPECT_TRUE(fs::exists(at("small_4bit.safetensors"))) << "4 bits are the default";
}

TEST_F(PackTest, EveryMethodAndWidth) {
  for (const MethodTraits& method : scalar_methods())
    for (int bits = 2; bits <= 8; ++bits) {
      SCOPED_TRACE(fmt::format("{} at {} bits", method.name, bits));
      const std::string line =
          fmt::format("pack small.safetensors --method {} --bits {} --json out.json", method.name, bits);
      if (bits < method.min_bits || bits > method.max_bits) {
        refuse(line, fmt::format("{} does not support {} bits", method.name, bits), 2);
        continue;
      }
      succeed(line);
      const std::string output = fmt::format("small_{}_{}bit.safetensors", method.name, bits);
      expect_packed_by(default_scheme(method.method, bits), output);
      const nlohmann::json report = json("out.json");
      EXPECT_EQ(report.at("output"), output);
      EXPECT_EQ(report.at("size").at("weights"), small_weights);
      EXPECT_EQ(report.at("size").at("file"), fs::file_size(at(output)));
    }
}

TEST_F(PackTest, EveryFlagReachesTheScheme) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"--granularity tensor", "linear:4:tensor"},
      {"--granularity row", "linear:4:row"},
      {"--granularity block:7 --bits 3", "linear:3:block:7"},
      {"--granularity tile:8x8 --bits 5", "linear:5:tile:8x8"},
      {"--scale f16", "linear:4:channel:f16"},
      {"--scale f32", "linear:4:channel"},
      {"--scale-sign signed", "linear:4:channel:signed"},
      {"--scale-sign absolute", "linear:4:channel"},
      {"--zero-point", "linear:4:channel:zero-point"},
      {"--zero-point --scale f16 --granularity block:16 --bits 6", "linear:6:block:16:f16:zero-point"},
      {"--method dynamic-tree --bits 3 --scale-sign absolute", "dynamic-tree:3:row:absolute"},
      {"--method dynamic-tree --bits 3", "dynamic-tree:3:row"},
      {"--method stable-embedding --granularity sorted:512", "stable-embedding:4:sorted:512"},
      {"--method fp8-e4m3", "fp8-e4m3:8:row"},  // a method of one width needs no --bits
  };
  for (const auto& [flags, scheme] : cases) {
    SCOPED_TRACE(flags);
    succeed("pack small.safetensors -o out.safetensors " + flags);
    expect_packed_by(parse_scheme(scheme), "out.safetensors");
    for (const auto& [weight, written] : schemes("out.safetensors")) EXPECT_EQ(written, scheme) << weight;
  }
}

TEST_F(PackTest, LayersMayDiffer) {
  // The flags stand in front of MODEL: a repeatable flag takes one value each time.
  succeed(
      "pack --bits 4 --method linear --layer features.*=linear:8:channel --layer features.3=nf4 "
      "--layer classifier.6.weight=dynamic-tree:3:row:f16 small.safetensors -o out.safetensors");
  const std::map<std::string, std::string> expected = {
      {"features.0.weight", "linear:8:channel"},   {"features.3.weight", "nf4:4:block:64"},
      {"features.6.weight", "linear:8:channel"},   {"features.8.weight", "linear:8:channel"},
      {"features.10.weight", "linear:8:channel"},  {"classifier.1.weight", "linear:4:channel"},
      {"classifier.4.weight", "linear:4:channel"}, {"classifier.6.weight", "dynamic-tree:3:row:f16"}};
  EXPECT_EQ(schemes("out.safetensors"), expected);
  refuse("pack small.safetensors --layer feature.*=linear:8:channel -o no.safetensors", "feature.*", 2);
  EXPECT_FALSE(fs::exists(at("no.safetensors")));
}

TEST_F(PackTest, ADryRunEstimatesAndWritesNothing) {
  const std::string options = "--bits 3 --layer classifier.*=kmeans:4:channel --json ";
  const Outcome outcome = succeed("pack small.safetensors --dry-run " + options + "dry.json");
  EXPECT_FALSE(fs::exists(at("small_mixed.safetensors")));
  succeed("pack small.safetensors " + options + "real.json");
  EXPECT_EQ(json("real.json").at("output"), "small_mixed.safetensors") << "not the name of the plain one";
  const nlohmann::json dry = json("dry.json"), real = json("real.json").at("size");
  EXPECT_EQ(dry.at("estimated"), real.at("estimated").at("total"));
  for (size_t i = 0; i < real.at("layers").size(); ++i) {
    EXPECT_EQ(dry.at("layers")[i].at("scheme"), real.at("layers")[i].at("scheme")) << i;
    EXPECT_EQ(dry.at("layers")[i].at("estimated"), real.at("layers")[i].at("estimated").at("total")) << i;
  }
  EXPECT_NE(outcome.out.find("nothing was packed"), std::string::npos) << outcome;
  // Calibrated defaults are known without calibrating.
  succeed("pack small.safetensors --dry-run --bits 3 --calibrate standin --json dry.json");
  EXPECT_EQ(json("dry.json").at("layers")[0].at("scheme"), "kmeans:4:channel");
  refuse("pack small.safetensors --dry-run --target-bits 3 --data standin", "--dry-run", 2);
  refuse("pack small_mixed.safetensors --dry-run --compress", "is packed already", 2);
  EXPECT_FALSE(fs::exists(at("small_mixed_compressed.safetensors")));
}

TEST_F(PackTest, WhatIsPackedIsNotPackedAgain) {
  succeed("pack small.safetensors");
  refuse("pack small_4bit.safetensors", "small_4bit.safetensors is packed already", 2);
  refuse("pack small_4bit.safetensors --bits 3 --layer classifier.1=kmeans:2", "is packed already", 2);
  refuse("pack small_4bit.safetensors --target-bits 3", "is packed already", 2);
}

TEST_F(PackTest, LayersOfAPackedModelArePackedAnewAndOthersKeepTheirCodes) {
  succeed("pack small.safetensors --bits 4 -o before.safetensors");
  succeed(
      "pack before.safetensors --layer classifier.1=trellis:2 --calibrate standin --calibration-images 40 -o "
      "after.safetensors");
  const StateDict before = model("before.safetensors"), after = model("after.safetensors");
  EXPECT_EQ(after.metadata.at("packed_anew"), "classifier.1");
  EXPECT_EQ(after.metadata.at("calibration_images"), "40");
  for (const Parameter& parameter : after.parameters) {
    if (!parameter.packed()) continue;
    const PackedTensor &is = parameter.packed_values(), &was = before.at(parameter.name).packed_values();
    if (parameter.name == "classifier.1.weight") {
      EXPECT_EQ(to_string(is.scheme), "trellis:2:channel");
      continue;
    }
    EXPECT_EQ(is.scheme, was.scheme) << parameter.name;
    EXPECT_EQ(is.codes, was.codes) << parameter.name;
    EXPECT_EQ(is.scales, was.scales) << parameter.name;
  }
  succeed("eval after.safetensors --data standin --limit 20");
  refuse("pack before.safetensors --layer classifier.2=trellis:2", "no layer of this name", 2);
}

TEST_F(PackTest, CompressedModelsAreSmallerFilesOfTheSameModel) {
  succeed("pack small.safetensors --bits 8 -o plain.safetensors --json plain.json");
  succeed("pack small.safetensors --bits 8 --compress -o small_c.safetensors --json compressed.json");
  const nlohmann::json plain = json("plain.json").at("size"), compressed = json("compressed.json").at("size");
  EXPECT_EQ(compressed.at("resident"), plain.at("resident"));
  EXPECT_LT(compressed.at("file"), plain.at("file"));
  EXPECT_EQ(compressed.at("file"), fs::file_size(at("small_c.safetensors")));

  // A packed model is written again with the same codes, and back.
  succeed("pack plain.safetensors --compress");
  EXPECT_EQ(read_text(at("plain_compressed.safetensors")), read_text(at("small_c.safetensors")));
  succeed("pack small_c.safetensors --no-compress");
  EXPECT_EQ(read_text(at("small_c_uncompressed.safetensors")), read_text(at("plain.safetensors")));
  refuse("pack plain.safetensors --compress --bits 4", "packed already", 2);

  succeed("export plain.safetensors -o a.safetensors");
  succeed("export small_c.safetensors -o b.safetensors");
  EXPECT_EQ(read_text(at("a.safetensors")), read_text(at("b.safetensors")));

  succeed("inspect small_c.safetensors --verify --json inspect.json");
  const nlohmann::json report = json("inspect.json");
  int64_t sum = report.at("header");
  for (const nlohmann::json& tensor : report.at("tensors")) {
    sum += tensor.at("bytes").get<int64_t>();
    if (tensor.at("name") != "classifier.1.weight") continue;
    EXPECT_EQ(tensor.at("compressed"), true);
    EXPECT_LT(tensor.at("compressed_bytes"), tensor.at("bytes"));
    EXPECT_GT(tensor.at("entropy"), 4.0);
    EXPECT_LT(tensor.at("entropy"), 8.0);
  }
  EXPECT_EQ(sum, fs::file_size(at("small_c.safetensors")));
}

TEST_F(PackTest, WithoutAModelTheNewestOneOfTheKindIsTaken) {
  for (const std::string tool : {"pack", "eval --data standin", "bench"}) refuse(tool, "weights", 2);

  fs::create_directory(at("weights"));
  const std::string train = "finetune --data standin --image-size 64 --threads 1 --epochs 1 --init small.safetensors ";
  succeed(train + "--out weights/old.safetensors");
  succeed(train + "--out weights/new.safetensors");
  succeed("pack weights/old.safetensors -o weights/old_packed.safetensors");
  succeed("pack weights/old.safetensors -o weights/new_packed.safetensors");
  write_text(at("weights/broken.safetensors"), "no model");
  write_text(at("weights/notes.txt"), "no model either");
  const auto now = fs::file_time_type::clock::now();
  // By date, the youngest first. The checkpoints that training leaves there are no models.
  int age = 0;
  for (const char* name :
       {"broken.safetensors", "notes.txt", "new.checkpoint.safetensors", "old.checkpoint.safetensors",
        "new_packed.safetensors", "new.safetensors", "old_packed.safetensors", "old.safetensors"})
    fs::last_write_time(at("weights") / name, now - std::chrono::seconds(10 * ++age));

  const std::vector<std::pair<std::string, std::string>> cases = {
      {"eval --data standin", "new_packed.safetensors"},
      {"bench --batch 1 --seconds 0", "new_packed.safetensors"},
      {"pack", "new.safetensors"}};
  for (const auto& [line, name] : cases) {
    const Outcome outcome = succeed(line);
    EXPECT_NE(first_line(outcome.out).find((at("weights") / name).string()), std::string::npos) << line << outcome;
  }
  EXPECT_TRUE(fs::exists(at("weights/new_4bit.safetensors")));
}

class EvalTest : public ToolsTest {
 protected:
  struct Logits {
    Tensor<float> logits;
    std::vector<int64_t> labels;

    int64_t predicted(int64_t image) const {
      const auto row = logits.view().span().subspan(static_cast<size_t>(image * logits.shape()[1]),
                                                    static_cast<size_t>(logits.shape()[1]));
      return std::ranges::max_element(row) - row.begin();
    }
  };
  Logits read_logits(const std::string& name) const {
    const SafetensorsFile file(at(name));
    EXPECT_EQ(file.tensors().size(), 2U);
    EXPECT_EQ(file.at("logits").dtype, DType::f32);
    EXPECT_EQ(file.at("labels").dtype, DType::i64);
    Logits result{golden(file, "logits"), std::vector<int64_t>(static_cast<size_t>(file.at("labels").sizes.at(0)))};
    std::memcpy(result.labels.data(), file.at("labels").bytes.data(), file.at("labels").bytes.size());
    return result;
  }

  /// Every key of the contract is there, and what can be computed from others agrees.
  void expect_consistent(const nlohmann::json& report, const std::string& model) const {
    EXPECT_DOUBLE_EQ(report.at("accuracy").get<double>(),
                     report.at("correct").get<double>() / report.at("images").get<double>());
    EXPECT_GE(report.at("accuracy"), 0.0);
    EXPECT_LE(report.at("accuracy"), 1.0);
    EXPECT_GT(report.at("loss"), 0.0);
    EXPECT_GT(report.at("images_per_second"), 0.0);
    EXPECT_EQ(report.at("device"), "cpu");
    const nlohmann::json& size = report.at("size");
    EXPECT_EQ(size.at("weights"), small_weights);
    EXPECT_GE(size.at("groups"), 0);
    EXPECT_EQ(size.at("file"), fs::file_size(at(model)));
    const nlohmann::json& estimated = size.at("estimated");
    EXPECT_DOUBLE_EQ(estimated.at("total").get<double>(),
                     estimated.at("codes").get<double>() + estimated.at("scales").get<double>());
    const nlohmann::json& resident = size.at("resident");
    int64_t sum = resident.value("weights", int64_t{0});  // of what is not packed
    for (const char* part : {"codes", "scales", "zero_points", "codebooks", "block_ids", "padding", "biases"})
      sum += resident.at(part).get<int64_t>();
    EXPECT_EQ(resident.at("total"), sum);
    const int64_t of_weights = sum - resident.at("padding").get<int64_t>() - resident.at("biases").get<int64_t>();
    EXPECT_DOUBLE_EQ(size.at("bits_per_weight").get<double>(), 8.0 * static_cast<double>(of_weights) / small_weights);
  }

  /// Compares eval's "simulation" of small.safetensors with the library's figures for the weights
  /// that it simulated.
  void expect_simulation(const nlohmann::json& report, const SimulatedScheme& scheme,
                         const StateDict& simulated) const {
    EXPECT_EQ(report.at("scheme"), to_string(scheme));
    EXPECT_EQ(report.at("claimed_bits"), scheme.bits);
    EXPECT_EQ(report.at("weights"), small_weights);
    const StateDict small = model("small.safetensors");
    QuantizationError total;
    int64_t most = 0;
    for (const auto& layer : report.at("layers")) {
      const std::string weight = layer.at("name").get<std::string>() + ".weight";
      const auto values = simulated.at(weight).values().view();
      const QuantizationError error = quantization_error(small.at(weight).values().view(), values);
      EXPECT_EQ(layer.at("mse"), error.mse());
      EXPECT_EQ(layer.at("needed_bits"), bits_needed(values).bits);
      total += error;
      most = std::max(most, bits_needed(values).distinct);
    }
    EXPECT_EQ(report.at("layers").size(), 8U);
    EXPECT_EQ(report.at("mse"), total.mse());
    EXPECT_EQ(report.at("snr_db"), total.snr_db());
    EXPECT_EQ(report.at("distinct_values"), most);
    EXPECT_EQ(report.contains("exponent_counts"), scheme.simulation == Simulation::dynamic_tree);
    if (!report.contains("exponent_counts")) return;
    int64_t counted = 0;
    for (const auto& count : report.at("exponent_counts")) counted += count.get<int64_t>();
    EXPECT_EQ(counted, small_weights);
  }
};

TEST_F(EvalTest, ReportsWhatTheContractLists) {
  const std::vector<std::string> flags = {"", "--bits 4 --method linear", "--bits 3 --method stable-embedding",
                                          "--bits 5 --zero-point --scale f16", "--method nf4"};
  for (const std::string& flag : flags) {
    SCOPED_TRACE(flag);
    std::string name = "small.safetensors";
    if (!flag.empty()) {
      succeed("pack " + name + " -o packed.safetensors " + flag);
      name = "packed.safetensors";
    }
    const Outcome outcome = succeed("eval --data standin --json out.json " + name);
    const nlohmann::json report = json("out.json");
    EXPECT_EQ(report.at("images"), 100);
    expect_consistent(report, name);
    EXPECT_EQ(report.at("size").at("groups") == 0, flag.empty());
    for (const char* word : {"accuracy", "95 % interval", "cross-entropy", "images/s", "estimated", "file B",
                             "resident", "features.0", "classifier.6", "total", "difference"})
      EXPECT_NE(outcome.out.find(word), std::string::npos) << word << outcome;
  }
}

TEST_F(EvalTest, LogitsAreInTheOrderOfTheDataAndAgreeWithTheReport) {
  for (const Split split : {Split::test, Split::train, Split::validation, Split::fitting}) {
    SCOPED_TRACE(to_string(split));
    succeed(fmt::format("eval small.safetensors --data standin --split {} --logits out.safetensors --json out.json",
                        to_string(split)));
    const Logits result = read_logits("out.safetensors");
    const nlohmann::json report = json("out.json");
    const Dataset dataset = load_dataset(at("standin"), split);
    EXPECT_TRUE(std::ranges::equal(result.labels, dataset.labels));
    ASSERT_EQ(result.logits.shape(), (Shape{dataset.size(), 10}));
    int64_t correct = 0;
    double loss = 0;
    for (int64_t i = 0; i < dataset.size(); ++i) {
      const int64_t label = result.labels[static_cast<size_t>(i)];
      correct += result.predicted(i) == label ? 1 : 0;
      double exponentials = 0;
      for (int64_t k = 0; k < 10; ++k) exponentials += std::exp(static_cast<double>(result.logits.data()[i * 10 + k]));
      loss += std::log(exponentials) - static_cast<double>(result.logits.data()[i * 10 + label]);
    }
    EXPECT_EQ(report.at("images"), dataset.size());
    EXPECT_EQ(report.at("correct"), correct);
    EXPECT_NEAR(report.at("loss").get<double>(), loss / static_cast<double>(dataset.size()), 1e-5);
  }
}

TEST_F(EvalTest, LimitTakesTheFirstImagesOfEveryClass) {
  succeed("eval small.safetensors --data standin --logits all.safetensors");
  succeed("eval small.safetensors --data standin --logits few.safetensors --limit 57 --batch 7");
  const Logits all = read_logits("all.safetensors"), few = read_logits("few.safetensors");
  ASSERT_EQ(few.labels.size(), 50U);
  std::map<int64_t, int> taken;
  int64_t row = 0;
  for (size_t i = 0; i < all.labels.size(); ++i) {
    if (++taken[all.labels[i]] > 5) continue;
    ASSERT_EQ(few.labels[static_cast<size_t>(row)], all.labels[i]);
    EXPECT_LE(relative_error(few.logits.view().slice(row, 1), all.logits.view().slice(static_cast<int64_t>(i), 1)),
              1e-5);
    ++row;
  }
  EXPECT_EQ(row, 50);
}

TEST_F(EvalTest, AnExportIsNamedAfterItsModel) {
  std::filesystem::create_directory(at("folder"));
  succeed("pack small.safetensors --bits 4 -o folder/packed.v2.safetensors");
  succeed("export folder/packed.v2.safetensors");
  succeed("export folder/packed.v2.safetensors --to pth --json export.json");
  nlohmann::json told = json("export.json");
  told.erase("nibblenet");  // the build
  EXPECT_EQ(told, (nlohmann::json{{"input", "folder/packed.v2.safetensors"},
                                  {"output", "folder/packed.v2_float32.pth"},
                                  {"format", "pth"},
                                  {"bytes", fs::file_size(at("folder/packed.v2_float32.pth"))},
                                  {"parameters", 16}}));
  const StateDict expected = dequantized(model("folder/packed.v2.safetensors"));
  for (const char* name : {"folder/packed.v2_float32.safetensors", "folder/packed.v2_float32.pth"})
    EXPECT_TRUE(same_bits(expected, model(name))) << name;
}

TEST_F(EvalTest, APackedModelEqualsItsExport) {
  for (const MethodTraits& method : method_table()) {
    SCOPED_TRACE(method.name);
    succeed(fmt::format("pack small.safetensors --method {} --bits {} -o packed.safetensors", method.name,
                        method.min_bits));
    succeed("export packed.safetensors --to safetensors -o float.safetensors");
    const StateDict exported = model("float.safetensors");
    EXPECT_FALSE(exported.packed());
    EXPECT_EQ(exported.metadata.at("image_size"), "64");
    EXPECT_EQ(exported.parameters.size(), 16U);
    EXPECT_TRUE(same_bits(dequantized(model("packed.safetensors")), exported));
    for (const char* name : {"packed", "float"})
      succeed(fmt::format("eval {0}.safetensors --data standin --logits {0}_logits.safetensors", name));
    EXPECT_LE(relative_error(read_logits("packed_logits.safetensors").logits.view(),
                             read_logits("float_logits.safetensors").logits.view()),
              1e-5);
  }
}

TEST_F(EvalTest, ComparesTwoModelsImageByImage) {
  succeed("pack small.safetensors --bits 3 -o packed.safetensors");
  const Outcome outcome = succeed("eval packed.safetensors --data standin --compare small.safetensors --json out.json");
  const nlohmann::json report = json("out.json"), other = report.at("compared_with");
  EXPECT_NEAR(other.at("only_this").get<double>() - other.at("only_other").get<double>(),
              100 * (report.at("accuracy").get<double>() - other.at("accuracy").get<double>()), 1e-9);
  EXPECT_EQ(other.at("size").at("file"), fs::file_size(at("small.safetensors")));
  EXPECT_NE(outcome.out.find("McNemar"), std::string::npos) << outcome;

  succeed("eval small.safetensors --data standin --compare small.safetensors --json same.json");
  EXPECT_EQ(json("same.json").at("compared_with").at("only_this"), 0);
  EXPECT_EQ(json("same.json").at("compared_with").at("mcnemar_p"), 1.0);
}

TEST_F(EvalTest, SimulatedWeightsAreThoseOfTheLibraryAndHaveNoSize) {
  for (const SimulationTraits& traits : simulation_table()) {
    SimulatedScheme scheme{traits.simulation, traits.min_bits};
    SCOPED_TRACE(to_string(scheme));
    StateDict simulated = model("small.safetensors");
    for (Parameter& parameter : simulated.parameters) {
      if (parameter.shape().rank() < 2) continue;
      Tensor<float> values(host_memory(), parameter.shape(), MemoryCategory::data);
      simulate(values.view(), std::as_const(parameter).values().view(), scheme);
      parameter.value = std::move(values);
    }
    save_state_dict(at("simulated.safetensors"), simulated);
    succeed("eval simulated.safetensors --data standin --logits expected.safetensors --json expected.json");
    const Outcome outcome = succeed(
        fmt::format("eval small.safetensors --data standin --simulate {} --logits actual.safetensors --json out.json",
                    to_string(scheme)));
    EXPECT_TRUE(std::ranges::equal(read_logits("actual.safetensors").logits.view(),
                                   read_logits("expected.safetensors").logits.view()));

    const nlohmann::json report = json("out.json");
    EXPECT_EQ(report.at("simulated"), true);
    EXPECT_TRUE(report.at("size").is_null());
    EXPECT_TRUE(report.at("peak_bytes").is_null());
    EXPECT_EQ(report.at("accuracy"), json("expected.json").at("accuracy"));
    EXPECT_EQ(json("expected.json").at("simulated"), false);
    EXPECT_TRUE(json("expected.json").at("simulation").is_null());
    expect_simulation(report.at("simulation"), scheme, simulated);
    for (const char* word : {"simulated", "claimed", "needed", "no size of their own"})
      EXPECT_NE(outcome.out.find(word), std::string::npos) << word << outcome;
    for (const char* word : {"estimated", "file (measured)", "resident", "peak memory"})
      EXPECT_EQ(outcome.out.find(word), std::string::npos) << word << outcome;
  }
}

TEST_F(EvalTest, ASimulatedModelIsComparedWithAFloatOne) {
  const Outcome outcome = succeed(
      "eval small.safetensors --data standin --simulate simulated-dynamic-tree:3 --compare small.safetensors --json "
      "out.json");
  const nlohmann::json report = json("out.json"), other = report.at("compared_with");
  EXPECT_NEAR(other.at("only_this").get<double>() - other.at("only_other").get<double>(),
              100 * (report.at("accuracy").get<double>() - other.at("accuracy").get<double>()), 1e-9);
  EXPECT_TRUE(report.at("size").is_null());
  EXPECT_EQ(other.at("size").at("file"), fs::file_size(at("small.safetensors")));
  EXPECT_NE(outcome.out.find("McNemar"), std::string::npos) << outcome;
  EXPECT_NE(outcome.out.find("none"), std::string::npos) << outcome;
  EXPECT_EQ(outcome.out.find("x smaller"), std::string::npos) << outcome;
}

TEST_F(EvalTest, RepairsReachTheSimulation) {
  const std::string line = "eval small.safetensors --data standin --json out.json --simulate simulated-linear-row";
  const auto error = [&](const std::string& flags) {
    succeed(line + flags);
    return json("out.json").at("simulation").at("mse").get<double>();
  };
  const double notebook = error(""), repaired = error(" --repair all");
  EXPECT_LT(repaired, notebook / 100);
  EXPECT_EQ(json("out.json").at("simulation").at("repairs").size(), 5U);
  EXPECT_EQ(error(" --repair overflow,truncation,range,zero-point,precision"), repaired);
  EXPECT_EQ(error("+all"), repaired);
  EXPECT_NE(error(" --repair zero-point"), error(" --repair overflow"));

  refuse(line + " --repair rounding", "overflow, truncation, range, zero-point, precision, all", 2);
  refuse("eval small.safetensors --data standin --repair all", "--simulate", 2);
  refuse("eval small.safetensors --data standin --simulate simulated-fp8 --repair all", "simulated-linear-row", 2);
  refuse("eval small.safetensors --data standin --simulate dynamic-tree:4", "simulated-dynamic-tree:3…8", 2);
  refuse("eval small.safetensors --data standin --simulate simulated-dynamic-tree:2", "simulated-dynamic-tree:3…8", 2);
  succeed("pack small.safetensors -o packed.safetensors");
  refuse("eval packed.safetensors --data standin --simulate simulated-fp8", "this one is packed", 2);
}

TEST_F(EvalTest, FindsTheImagesByTheVariableThenInTheFolderData) {
  environment_.push_back("NIBBLENET_DATA=nowhere");
  refuse("eval small.safetensors", "NIBBLENET_DATA=nowhere", 2);
  environment_.back() = "NIBBLENET_DATA=" + at("standin").string();
  EXPECT_NE(succeed("eval small.safetensors").out.find("NIBBLENET_DATA"), std::string::npos);
  environment_.pop_back();
  fs::rename(at("standin"), at("data"));
  EXPECT_NE(succeed("eval small.safetensors").out.find("found in data/"), std::string::npos);
}

class InspectTest : public ToolsTest {};

TEST_F(InspectTest, CountsTheExponentsOfDynamicTrees) {
  for (const char* method : {"dynamic-tree", "stable-embedding"})
    for (int bits = 3; bits <= 8; ++bits) {
      SCOPED_TRACE(fmt::format("{} {}", method, bits));
      succeed(fmt::format("pack small.safetensors --method {} --bits {} -o packed.safetensors", method, bits));
      const Outcome outcome = succeed("inspect packed.safetensors --json out.json");
      int64_t weights = 0;
      const nlohmann::json report = json("out.json");
      for (const auto& tensor : report.at("tensors")) {
        if (!tensor.contains("exponent_counts")) continue;
        EXPECT_EQ(tensor.at("exponent_counts").size(), static_cast<size_t>(bits - 1));
        int64_t sum = tensor.at("zeros").get<int64_t>();
        for (const auto& count : tensor.at("exponent_counts")) sum += count.get<int64_t>();
        EXPECT_EQ(sum, Shape(tensor.at("shape").get<std::vector<int64_t>>()).elements()) << tensor;
        weights += sum;
      }
      EXPECT_EQ(weights, small_weights);
      EXPECT_NE(outcome.out.find("exponent counts"), std::string::npos);
    }
}

/// Rates below 1 have codes of no whole bit.
TEST_F(InspectTest, TheEntropyOfTrellisStringsIsTheirRate) {
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis)) {
    succeed(fmt::format("pack small.safetensors --layer classifier.1={} -o packed.safetensors", to_string(scheme)));
    succeed("inspect packed.safetensors --json out.json");
    const auto tensors = json("out.json").at("tensors");
    const auto found = std::ranges::find(tensors, nlohmann::json("classifier.1.weight"),
                                         [](const nlohmann::json& tensor) { return tensor.at("name"); });
    ASSERT_NE(found, tensors.end());
    EXPECT_EQ(found->at("entropy"), scheme.bits_per_code()) << to_string(scheme);
  }
}

TEST_F(InspectTest, RoutesNameThePassThatRotatesInputs) {
  StateDict even = even_alexnet(1);
  even.metadata["image_size"] = "224";
  save_state_dict(at("even.safetensors"), even);
  succeed("pack even.safetensors --method linear --bits 4 --rotate -o packed.safetensors");
  const Outcome outcome = succeed("inspect packed.safetensors --routes --json out.json");
  EXPECT_THAT(outcome.out, ::testing::HasSubstr("features.3     few_pixels after hadamard, with max pooling\n"));
  const nlohmann::json routes = json("out.json").at("routes");
  ASSERT_EQ(routes.size(), 8U);
  for (const auto& route : routes) EXPECT_EQ(route.at("rotates"), route.at("layer") != "features.0");
  EXPECT_TRUE(routes.at(0).at("pools"));
}

/// The fuzzer changes these files: it tests little where they are refused as they are.
TEST_F(InspectTest, SeedsOfTheFuzzerAreRead) {
  int files = 0;
  for (const auto& file : fs::directory_iterator(fs::path(NIBBLENET_SOURCE) / "tests/fuzz/seeds/packed")) {
    succeed("inspect " + file.path().string() + " --json out.json");
    EXPECT_TRUE(json("out.json").at("tensors").at(0).contains("entropy")) << file.path() << " is not packed";
    ++files;
  }
  EXPECT_GE(files, 9);
}

TEST_F(InspectTest, ShowsEveryTensorWithItsRange) {
  const StateDict small = model("small.safetensors");
  succeed("inspect small.safetensors --json out.json");
  const nlohmann::json report = json("out.json");
  ASSERT_EQ(report.at("tensors").size(), small.parameters.size());
  EXPECT_EQ(report.at("bytes"), small.file_bytes);
  for (const auto& tensor : report.at("tensors")) {
    const auto values = small.at(tensor.at("name").get<std::string>()).values().view().span();
    EXPECT_EQ(tensor.at("min").get<float>(), *std::ranges::min_element(values));
    EXPECT_EQ(tensor.at("max").get<float>(), *std::ranges::max_element(values));
    EXPECT_EQ(tensor.at("bytes").get<size_t>(), values.size_bytes());
    EXPECT_EQ(tensor.at("scheme"), "float32");
  }
}

TEST_F(InspectTest, TotalsAndCountsWhatIsNoNumber) {
  const auto row_of = [](const std::string& out, const std::string& name) {
    const size_t begin = out.find("\n" + name + " ") + 1;
    return out.substr(begin, out.find('\n', begin) - begin);
  };
  StateDict small = model("small.safetensors");
  succeed("inspect small.safetensors --json out.json");
  const nlohmann::json whole = json("out.json").at("total");
  int64_t values = 0, bytes = 0;
  float least = INFINITY, most = -INFINITY;
  for (const Parameter& parameter : small.parameters) {
    values += parameter.shape().elements();
    bytes += parameter.file_bytes;
    least = std::min(least, *std::ranges::min_element(parameter.values().view().span()));
    most = std::max(most, *std::ranges::max_element(parameter.values().view().span()));
  }
  EXPECT_EQ(whole.at("shape"), nlohmann::json({values}));
  EXPECT_EQ(whole.at("bytes"), bytes);
  EXPECT_EQ(whole.at("bits_per_weight"), 32.0);
  EXPECT_EQ(whole.at("min").get<float>(), least);
  EXPECT_EQ(whole.at("max").get<float>(), most);
  EXPECT_EQ(whole.at("nan"), 0);

  auto odd = small.at("features.3.bias").values().view();
  odd[1] = NAN;
  odd[2] = odd[3] = -INFINITY;
  save_state_dict(at("odd.safetensors"), small);
  const Outcome outcome = succeed("inspect odd.safetensors --json out.json");
  EXPECT_NE(outcome.out.find("no numbers: 1 NaN, 2 infinite"), std::string::npos) << outcome;
  for (const char* name : {"features.3.bias", "total"})
    EXPECT_NE(row_of(outcome.out, name).find("nan"), std::string::npos) << outcome;
  EXPECT_EQ(row_of(outcome.out, "features.3.weight").find("nan"), std::string::npos) << outcome;
  EXPECT_EQ(json("out.json").at("total").at("nan"), 1);
  EXPECT_EQ(json("out.json").at("total").at("infinite"), 2);
}

TEST_F(InspectTest, NamesTheTypeThatElementsAreStoredIn) {
  const std::vector<uint8_t> bytes(16);
  write_safetensors(at("types.safetensors"),
                    {{"half", DType::f16, {2, 4}, bytes},
                     {"bfloat", DType::bf16, {8}, bytes},
                     {"single", DType::f32, {4}, bytes},
                     {"double", DType::f64, {2}, bytes}},
                    {{"format", "pt"}});
  succeed("inspect types.safetensors --json out.json");
  std::map<std::string, std::pair<std::string, double>> found;
  const nlohmann::json report = json("out.json");
  for (const auto& tensor : report.at("tensors"))
    found[tensor.at("name")] = {tensor.at("scheme"), tensor.at("bits_per_weight")};
  const std::map<std::string, std::pair<std::string, double>> expected = {{"half", {"float16", 16}},
                                                                          {"bfloat", {"bfloat16", 16}},
                                                                          {"single", {"float32", 32}},
                                                                          {"double", {"float64", 64}}};
  EXPECT_EQ(found, expected);
}

TEST_F(InspectTest, VerifyFindsAFlippedBitInAnyTensor) {
  succeed("pack small.safetensors --bits 4 --zero-point -o packed.safetensors");
  EXPECT_NE(succeed("inspect packed.safetensors --verify").out.find("32 checksums verified"), std::string::npos);
  const std::string text = read_text(at("packed.safetensors"));
  const SafetensorsFile file(at("packed.safetensors"));
  const uint8_t* data = file.tensors().front().bytes.data();
  for (const TensorEntry& entry : file.tensors()) {
    std::string flipped = text;
    const auto offset = file.header_bytes() + (&entry.bytes.back() - data);
    flipped[static_cast<size_t>(offset)] = static_cast<char>(flipped[static_cast<size_t>(offset)] ^ 1);
    write_text(at("flipped.safetensors"), flipped);
    refuse("inspect flipped.safetensors --verify", entry.name, 1);
  }
}

class BenchTest : public ToolsTest {};

TEST_F(BenchTest, ReportsWarmAndColdForEveryBatchSize) {
  succeed("pack small.safetensors");
  for (const std::string model : {"small.safetensors", "small_4bit.safetensors"}) {
    const Outcome outcome = succeed("bench " + model + " --batch 3,1 --seconds 0.01 --threads 2 --json out.json");
    for (const char* word : {"warm", "cold", "p10", "p90", "images/s"})
      EXPECT_NE(outcome.out.find(word), std::string::npos) << word << outcome;
    const nlohmann::json report = json("out.json"), results = report.at("results");
    EXPECT_GE(report.at("cold_sweep_bytes").get<int64_t>(), 64 << 20);
    ASSERT_EQ(results.size(), 2U);
    EXPECT_EQ(results[0].at("batch"), 3);
    EXPECT_EQ(results[1].at("batch"), 1);
    for (const nlohmann::json& result : results) {
      for (const std::string key : {"latency_ms", "cold_latency_ms"}) {
        EXPECT_GT(result.at(key + "_p10"), 0.0);
        EXPECT_LE(result.at(key + "_p10"), result.at(key));
        EXPECT_LE(result.at(key), result.at(key + "_p90"));
      }
      EXPECT_GE(result.at("samples"), 3);
      EXPECT_GE(result.at("cold_samples"), 3);
      const double rate = result.at("images_per_second");
      EXPECT_NEAR(rate * result.at("latency_ms").get<double>(), 1000 * result.at("batch").get<double>(), 1e-6 * rate);
    }
  }
}

}  // namespace
}  // namespace nibblenet::testing
