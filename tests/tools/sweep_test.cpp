#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "engine/io/dataset.h"
#include "engine/io/posix_file.h"
#include "tests/support/small_network.h"
#include "tests/tools/run.h"

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const std::string sweep = "sweep small.safetensors --data standin --threads 1 --limit 50 ";
const std::string few = "--schemes linear:4:row,simulated-dynamic-tree:3,dynamic-tree:3:row:absolute,nf4 ";
const std::vector<std::string> few_names = {"float32", "linear:4:row", "simulated-dynamic-tree:3",
                                            "dynamic-tree:3:row:absolute", "nf4:4:block:64"};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> cells_of(const std::string& line, char separator = ',') {
  std::vector<std::string> cells;
  std::istringstream stream(line + separator);
  for (std::string cell; std::getline(stream, cell, separator);) cells.push_back(cell);
  return cells;
}

/// The document without what a second run measures anew.
std::string without_times(Json document) {
  for (Json& row : document.at("results"))
    for (const char* key :
         {"images_per_second", "evaluation_seconds", "quantization_seconds", "encode_seconds", "decode_seconds"})
      EXPECT_EQ(row.erase(key), 1U);
  return document.dump();
}

class SweepTest : public ToolsTest {
 protected:
  /// Without their checksums, as older programs wrote them.
  std::vector<Json> rows(const std::string& folder) const {
    std::vector<Json> result;
    for (const std::string& line : lines_of(read_text(at(folder) / "results.jsonl"))) {
      result.push_back(Json::parse(line));
      result.back().erase("xxh3");
    }
    return result;
  }
  Json row(const std::string& folder, const std::string& scheme) const {
    for (const Json& each : rows(folder))
      if (each.at("scheme") == scheme) return each;
    ADD_FAILURE() << "no row of " << scheme;
    return {};
  }

  /// All of the report but the times: they stand in the last section, and in columns and keys of
  /// their own.
  std::string report(const std::string& folder) const {
    const std::string markdown = read_text(at(folder) / "report.md"), page = read_text(at(folder) / "report.html");
    const size_t end = markdown.find("## Speed"), page_end = page.find("<h2>Speed");
    EXPECT_NE(end, std::string::npos);
    EXPECT_NE(page_end, std::string::npos);
    std::string text =
        markdown.substr(0, end) + page.substr(0, page_end) + without_times(json(folder + "/report.json"));
    std::vector<std::string> csv = lines_of(read_text(at(folder) / "report.csv"));
    const std::vector<std::string> names = cells_of(csv.at(0));
    for (const std::string& line : csv) {
      const std::vector<std::string> cells = cells_of(line);
      for (size_t i = 0; i < cells.size(); ++i)
        if (!names.at(i).ends_with("_second") && !names.at(i).ends_with("_seconds")) text += cells[i] + ",";
      text += "\n";
    }
    return text;
  }

  /// Gnuplot is not found: reports have no plots, and are written faster.
  void without_gnuplot() { environment_.push_back("PATH=/nowhere"); }

  void expect_same_report(const std::string& folder, const std::string& expected) const {
    EXPECT_TRUE(report(folder) == expected) << "another report than that of a run in one go";
  }
};

TEST_F(SweepTest, RowsSayWhatEvalSays) {
  succeed(sweep + few + "--out out --keep-models --json out.json");
  ASSERT_EQ(rows("out").size(), few_names.size());
  for (const auto& [scheme, file] : {std::pair{"linear:4:row", "linear_4_row.safetensors"},
                                     {"dynamic-tree:3:row:absolute", "dt_quantized_model_bl_3.safetensors"},
                                     {"nf4:4:block:64", "nf4_4_block_64.safetensors"}}) {
    succeed(fmt::format(
        "eval out/{} --data standin --threads 1 --limit 50 --compare small.safetensors --json eval.json", file));
    const auto expected = json("eval.json"), actual = row("out", scheme);
    for (const char* key : {"images", "correct", "accuracy", "accuracy_interval", "loss", "size"})
      EXPECT_EQ(actual.at(key), expected.at(key)) << scheme << " " << key;
    EXPECT_EQ(actual.at("only_this"), expected.at("compared_with").at("only_this"));
    EXPECT_EQ(actual.at("only_float"), expected.at("compared_with").at("only_other"));
    EXPECT_EQ(actual.at("mcnemar_p"), expected.at("compared_with").at("mcnemar_p"));
    EXPECT_EQ(actual.at("size").at("file"), fs::file_size(at("out") / file));
    EXPECT_FALSE(actual.at("simulated").get<bool>());
  }
  succeed("eval small.safetensors --data standin --threads 1 --limit 50 --json eval.json");
  for (const char* key : {"images", "correct", "accuracy", "loss", "size"})
    EXPECT_EQ(row("out", "float32").at(key), json("eval.json").at(key)) << key;
  nlohmann::json told = json("out.json");
  EXPECT_TRUE(told.at("data_set").at("stand_in").get<bool>());
  told.erase("data_set");
  told.erase("nibblenet");
  EXPECT_EQ(told, json("out/report.json"));
}

TEST_F(SweepTest, ValidationStandsBesideTheTest) {
  without_gnuplot();
  const std::string line = "sweep small.safetensors --data standin --threads 1 --schemes linear:4:channel --out out ";
  const Outcome outcome = succeed(line + "--validation --keep-models");
  EXPECT_NE(outcome.out.find("on 100 test images and 20 validation images"), std::string::npos) << outcome;
  for (const auto& [scheme, file] :
       {std::pair{"float32", "small.safetensors"}, {"linear:4:channel", "out/linear_4_channel.safetensors"}}) {
    const std::string eval = fmt::format("eval {} --data standin --threads 1 --json eval.json", file);
    succeed(eval + " --split validation");
    const Json expected = json("eval.json"), actual = row("out", scheme);
    EXPECT_EQ(expected.at("images"), 20);
    for (const char* key : {"images", "correct", "accuracy", "accuracy_interval", "loss"})
      EXPECT_EQ(actual.at("validation").at(key), expected.at(key)) << scheme << " " << key;
    succeed(eval);
    EXPECT_EQ(actual.at("accuracy"), json("eval.json").at("accuracy"));
  }
  EXPECT_EQ(json("out/report.json").at("setup").at("validation_images"), 20);
  const std::vector<std::string> csv = lines_of(read_text(at("out/report.csv")));
  const std::vector<std::string> names = cells_of(csv.at(0));
  const auto column = static_cast<size_t>(std::ranges::find(names, "validation_accuracy") - names.begin());
  ASSERT_LT(column, names.size());
  EXPECT_EQ(cells_of(csv.at(2)).at(column), row("out", "linear:4:channel").at("validation").at("accuracy").dump());
  for (const char* file : {"out/report.md", "out/report.html"})
    EXPECT_NE(read_text(at(file)).find("validation accuracy %"), std::string::npos) << file;

  EXPECT_NE(succeed(line + "--validation").out.find("2 rows are there already"), std::string::npos);
  refuse(line, "--validation (20, not 0)", 2);
  refuse(line + "--validation --limit 50", "another --limit", 2);
  refuse(line + "--validation --split train", "--split", 2);

  succeed(sweep + "--schemes nf4,linear:4:channel --validation --out shards --shard 2/2");
  succeed("sweep --merge --out shards");
  EXPECT_EQ(row("shards", "linear:4:channel").at("validation"), row("out", "linear:4:channel").at("validation"));
}

/// sweep.json and rows from before --validation have no key of it.
TEST_F(SweepTest, AFolderFromBeforeValidationGoesOn) {
  without_gnuplot();
  succeed(sweep + "--schemes linear:4:channel --out out");
  EXPECT_EQ(read_text(at("out/report.csv")).find("validation"), std::string::npos);
  Json setup = json("out/sweep.json");
  for (const char* key : {"validation_images", "validation_checksum"}) EXPECT_EQ(setup.erase(key), 1U);
  write_text(at("out/sweep.json"), setup.dump());
  std::string lines;
  for (Json each : rows("out")) {
    EXPECT_EQ(each.erase("validation"), 1U);
    lines += each.dump() + "\n";
  }
  write_text(at("out/results.jsonl"), lines);
  EXPECT_NE(succeed(sweep + "--schemes linear:4:channel --out out").out.find("2 rows are there already"),
            std::string::npos);
  refuse(sweep + "--schemes linear:4:channel --validation --out out", "--validation (0, not 20)", 2);
}

TEST_F(SweepTest, EveryRowHasEveryKey) {
  succeed(sweep + few + "--out out");
  for (const auto& each : rows("out")) {
    for (const char* key :
         {"scheme",    "method", "bits",   "granularity", "scale_sign",   "simulated",       "images",
          "accuracy",  "loss",   "mse",    "mae",         "snr_db",       "only_float",      "only_this",
          "mcnemar_p", "size",   "layers", "need",        "claimed_size", "exponent_counts", "images_per_second"})
      EXPECT_TRUE(each.contains(key)) << each.at("scheme") << " " << key;
    EXPECT_EQ(each.at("layers").size(), 8U);
    EXPECT_EQ(each.at("layers").at(0).at("name"), "features.0") << "in the network's order";
  }
  const auto simulated = row("out", "simulated-dynamic-tree:3"), packed = row("out", "dynamic-tree:3:row:absolute");
  EXPECT_TRUE(simulated.at("simulated").get<bool>());
  EXPECT_TRUE(simulated.at("size").is_null()) << "simulated weights have no size";
  EXPECT_EQ(simulated.at("claimed_size"), packed.at("size").at("estimated"));
  EXPECT_EQ(simulated.at("exponent_counts"), packed.at("exponent_counts"));
  EXPECT_GT(simulated.at("need").at("bits"), 3) << "the claim is not a 3-bit code";
  EXPECT_LE(packed.at("need").at("bits"), 3);
  EXPECT_EQ(packed.at("scale_sign"), "absolute");
  EXPECT_EQ(row("out", "float32").at("mse"), 0.0);
}

TEST_F(SweepTest, ErrorsAreThoseOfTheFile) {
  succeed(sweep + "--schemes linear:2:channel --keep-models --out out");
  const StateDict original = model("small.safetensors"), packed = model("out/linear_2_channel.safetensors");
  double squared = 0, absolute = 0, signal = 0;
  int64_t weights = 0;
  for (const Parameter& parameter : packed.parameters) {
    if (!parameter.packed()) continue;
    Tensor<float> values(host_memory(), parameter.shape(), MemoryCategory::data);
    dequantize(parameter.packed_values(), values.view());
    const auto expected = original.at(parameter.name).values().view();
    for (int64_t i = 0; i < expected.elements(); ++i, ++weights) {
      const double w = expected[i], difference = w - static_cast<double>(values.data()[i]);
      squared += difference * difference;
      absolute += std::abs(difference);
      signal += w * w;
    }
  }
  const auto measured = row("out", "linear:2:channel");
  const auto n = static_cast<double>(weights);
  EXPECT_NEAR(measured.at("mse"), squared / n, 1e-10 * squared / n);
  EXPECT_NEAR(measured.at("mae"), absolute / n, 1e-10 * absolute / n);
  EXPECT_NEAR(measured.at("snr_db"), 10 * std::log10(signal / squared), 1e-9);
}

TEST_F(SweepTest, KilledAfterAnyRowItGoesOnToTheSameReport) {
  succeed(sweep + few + "--out whole");
  const std::string expected = report("whole");
  for (const std::string& name : few_names) {  // each run gets one row further, at least
    Child child(command(sweep + few + "--out cut"), at(""), environment_, at(".cut").string());
    child.wait_for(name + " ");
    child.send(SIGKILL);
    child.wait();
  }
  succeed(sweep + few + "--out cut");
  expect_same_report("cut", expected);
  EXPECT_EQ(succeed(sweep + few + "--out cut").out.find("loss"), std::string::npos) << "nothing is measured twice";
  expect_same_report("cut", expected);
}

TEST_F(SweepTest, CutAtAnyByteItGoesOnToTheSameReport) {
  without_gnuplot();
  succeed(sweep + few + "--out out");
  const std::string expected = report("out"), results = read_text(at("out/results.jsonl"));
  const size_t second = results.find('\n') + 1;
  for (const size_t length : {size_t{0}, size_t{1}, second - 2, second - 1, second, second + 1, results.size() / 2,
                              results.size() - 2, results.size() - 1}) {
    SCOPED_TRACE(length);
    write_text(at("out/results.jsonl"), results.substr(0, length));
    fs::remove(at("out/report.md"));
    succeed(sweep + few + "--out out");
    expect_same_report("out", expected);
    EXPECT_EQ(rows("out").size(), few_names.size());
  }
}

TEST_F(SweepTest, DamagedRowsAreMeasuredAgain) {
  without_gnuplot();
  succeed(sweep + few + "--out out");
  const std::string expected = report("out");
  const std::vector<std::string> good = lines_of(read_text(at("out/results.jsonl")));
  const auto changed = [&](const char* key, const Json& value) {
    auto document = Json::parse(good[1]);
    EXPECT_EQ(document.erase("xxh3"), 1U) << "it would not fit";
    document[key] = value;
    return document.dump();
  };
  std::vector<std::string> bad = {"",
                                  "{}",
                                  "null",
                                  "[1]",
                                  "no JSON",
                                  std::string(5000, '['),
                                  good[1].substr(1),
                                  good[0],
                                  changed("accuracy", 2.5),
                                  changed("accuracy", "x"),
                                  changed("images", -1),
                                  changed("scheme", "`touch here`"),
                                  changed("scheme", 7),
                                  changed("bits", 8),
                                  changed("method", "nf4"),
                                  changed("images", 1'000'000),
                                  changed("size", nullptr),
                                  changed("layers", 1),
                                  changed("only_this", 1e300),
                                  changed("granularity", "<b>"),
                                  changed("loss", nullptr),
                                  changed("exponent_counts", {1e30})};
  for (const std::string& line : bad) {
    SCOPED_TRACE(line.substr(0, 80));
    std::string text;
    for (size_t i = 0; i < good.size(); ++i) text += (i == 1 ? line : good[i]) + "\n";
    write_text(at("out/results.jsonl"), text);
    EXPECT_NE(succeed(sweep + few + "--out out").out.find("line 2"), std::string::npos);
    expect_same_report("out", expected);
    EXPECT_EQ(rows("out").size(), few_names.size());
  }
}

/// Every bit of a row that reading would understand: digits of figures, and keys.
TEST_F(SweepTest, FlippedBitsOfRowsReachNoReport) {
  without_gnuplot();
  succeed(sweep + few + "--out out");
  const std::string expected = report("out"), results = read_text(at("out/results.jsonl"));
  for (int i = 0; i < 20; ++i) {
    std::string flipped = results;
    const size_t place = results.size() * static_cast<size_t>(2 * i + 1) / 40;
    flipped[place] = static_cast<char>(flipped[place] ^ (1 << i % 3));
    SCOPED_TRACE(results.substr(place - std::min<size_t>(place, 20), 40));
    write_text(at("out/results.jsonl"), flipped);
    EXPECT_NE(succeed(sweep + few + "--out out").out.find("damaged"), std::string::npos);
    expect_same_report("out", expected);
  }
}

const std::string frontier =
    "--schemes \"pack --bits 4,pack --bits 3 --calibrated --layer classifier.[14]=kmeans:2\" --models made.safetensors "
    "--calibrate standin --calibration-images 50 --save-calibration kept.safetensors ";
const std::vector<std::string> frontier_names = {
    "float32", "pack --bits 4", "pack --bits 3 --calibrated --layer classifier.[14]=kmeans:2", "model made"};

TEST_F(SweepTest, RecipesDoWhatPackDoes) {
  without_gnuplot();
  succeed("pack small.safetensors --threads 1 --bits 2 --compress -o made.safetensors");
  succeed(sweep + frontier + "--out out");
  succeed("pack small.safetensors --threads 1 --bits 4 -o plain.safetensors");
  succeed(
      "pack small.safetensors --threads 1 --bits 3 --layer classifier.[14]=kmeans:2 --calibrate standin "
      "--calibration-images 50 -o calibrated.safetensors");
  StateDict calibrated = model("calibrated.safetensors");  // a sweep does not measure what int8 and bfloat16 cost
  std::erase_if(calibrated.metadata, [](const auto& item) { return item.first.starts_with("divergence:"); });
  save_state_dict(at("calibrated.safetensors"), calibrated);
  ASSERT_EQ(rows("out").size(), frontier_names.size());
  for (const auto& [scheme, file] : {std::pair{frontier_names[1], "plain.safetensors"},
                                     {frontier_names[2], "calibrated.safetensors"},
                                     {frontier_names[3], "made.safetensors"}}) {
    SCOPED_TRACE(scheme);
    succeed(fmt::format("eval {} --data standin --threads 1 --limit 50 --json eval.json", file));
    const auto expected = json("eval.json"), actual = row("out", scheme);
    for (const char* key : {"images", "correct", "accuracy", "loss", "size"})
      EXPECT_EQ(actual.at(key), expected.at(key)) << key;
    succeed(fmt::format("pack {} --compress -o compressed.safetensors", file));
    EXPECT_EQ(actual.at("compressed_rest"), fs::file_size(at("compressed.safetensors")));
    EXPECT_TRUE(actual.at("bits").is_null()) << "layers have their own";
    EXPECT_EQ(actual.at("calibration").is_null(), scheme.find("--calibrated") == std::string::npos);
    EXPECT_EQ(actual.at("checksum").is_null(), scheme != "model made");
  }
  EXPECT_NE(read_text(at("out/report.md")).find("## Accuracy per byte"), std::string::npos);
  EXPECT_FALSE(fs::exists(at("out/.passing.safetensors")));
}

TEST_F(SweepTest, RecipesGoOnWhereTheyWere) {
  without_gnuplot();
  succeed("pack small.safetensors --threads 1 --bits 2 -o made.safetensors");
  succeed(sweep + frontier + "--out out");
  const std::string expected = report("out"), results = read_text(at("out/results.jsonl"));
  const std::vector<std::string> lines = lines_of(results);
  std::string kept;
  for (size_t i = 0; i <= lines.size(); ++i) {  // with fewer and fewer rows to measure
    SCOPED_TRACE(i);
    write_text(at("out/results.jsonl"), kept + (i < lines.size() ? lines[i].substr(0, lines[i].size() / 2) : ""));
    const Outcome outcome = succeed(sweep + frontier + "--out out");
    expect_same_report("out", expected);
    EXPECT_EQ(outcome.out.find("wrote the calibration") == std::string::npos, i >= 3)
        << "only for rows that ask for it";
    if (i < lines.size()) kept += lines[i] + "\n";
  }
}

TEST_F(SweepTest, RowsOfAnotherBuildStayWithAWarning) {
  without_gnuplot();
  const std::string warning = "another build of sweep measured", remark = "2 builds of the program";
  succeed(sweep + few + "--out out");
  EXPECT_EQ(succeed(sweep + few + "--out out").err.find(warning), std::string::npos);
  EXPECT_EQ(read_text(at("out/report.md")).find(remark), std::string::npos);
  std::string text;
  for (Json row : rows("out")) {
    if (row.at("scheme") == few_names[1]) row["program"] = "0123456789abcdef";
    text += row.dump() + "\n";
  }
  write_text(at("out/results.jsonl"), text);
  const Outcome outcome = succeed(sweep + few + "--out out");
  EXPECT_NE(outcome.err.find(warning + " 1 of them"), std::string::npos) << outcome;
  EXPECT_NE(read_text(at("out/report.md")).find(remark), std::string::npos);
  EXPECT_EQ(row("out", few_names[1]).at("program"), "0123456789abcdef") << "not measured again";
}

TEST_F(SweepTest, RowsOfAnotherCalibrationOrModelAreRefused) {
  without_gnuplot();
  succeed("pack small.safetensors --threads 1 --bits 2 -o made.safetensors");
  const std::string calibrated = "--schemes \"pack --bits 3 --calibrated\" --calibrate standin ";
  succeed(sweep + calibrated + "--calibration-images 50 --models made.safetensors --out out");
  refuse(sweep + "--schemes \"pack --bits 2 --calibrated\" --calibrate standin --calibration-images 40 --out out",
         "rows of another calibration", 2);
  succeed(sweep + calibrated + "--calibration-images 40 --out out");  // nothing is left to calibrate for
  succeed("pack small.safetensors --threads 1 --bits 3 -o made.safetensors");
  refuse(sweep + "--models made.safetensors --out out", "is another file than the one", 2);
}

TEST_F(SweepTest, RecipesAndModelsThatMakeNoSenseAreRefusedBeforeAnyWork) {
  refuse(sweep + "--preset frontier --out out", "add --calibrate DATA or --calibration FILE", 2);
  refuse(sweep + "--schemes \"pack --bits 9\" --out out", "is nothing that pack does", 2);
  refuse(sweep + "--schemes \"pack --layer conv*=nf4\" --out out", "no layer of this name", 2);
  refuse(sweep + "--schemes \"model made\" --out out", "files are given by --models", 2);
  refuse(sweep + "--models none.safetensors --out out", "none.safetensors", 1);
  fs::create_directory(at("other"));
  for (const char* name : {"made.safetensors", "other/made.safetensors"})
    succeed(fmt::format("pack small.safetensors --bits 2 -o {}", name));
  refuse(sweep + "--models made.safetensors --models other/made.safetensors --out out", "has the same name", 2);
  EXPECT_FALSE(fs::exists(at("out")));
  refuse(sweep + "--models small.safetensors --out out", "small.safetensors is not packed", 2);
}

TEST_F(SweepTest, LostPredictionsOfTheFloatModelAreMadeAgain) {
  without_gnuplot();
  succeed(sweep + few + "--out out");
  const std::string expected = report("out"), whole = read_text(at("out/float_right.safetensors"));
  std::string flipped = whole;
  flipped.back() = flipped.back() == 0 ? 1 : 0;
  for (const std::string& text : {std::string(), whole.substr(0, whole.size() - 1), flipped}) {
    write_text(at("out/float_right.safetensors"), text);
    write_text(at("out/results.jsonl"),
               read_text(at("out/results.jsonl")).substr(0, read_text(at("out/results.jsonl")).size() - 3));
    succeed(sweep + few + "--out out");
    expect_same_report("out", expected);
    EXPECT_EQ(read_text(at("out/float_right.safetensors")), whole);
  }
}

TEST_F(SweepTest, InterruptedItSaysHowToGoOn) {
  succeed(sweep + few + "--out whole");
  Child child(command(sweep + few + "--out cut"), at(""), environment_, at(".cut").string());
  ASSERT_TRUE(child.wait_for("float32 ")) << child.wait();
  child.send(SIGINT);
  const Outcome stopped = child.wait();
  EXPECT_EQ(stopped.code, 130) << stopped;
  EXPECT_NE(stopped.err.find("the same command goes on"), std::string::npos) << stopped;
  succeed(sweep + few + "--out cut");
  expect_same_report("cut", report("whole"));
}

TEST_F(SweepTest, AFolderHoldsOneSetup) {
  without_gnuplot();
  const std::string run = "sweep small.safetensors --data standin --schemes linear:4 ";
  succeed(run + "--threads 1 --limit 50 --out out");
  StateDict other = small_alexnet(2);
  other.metadata["image_size"] = "64";
  save_state_dict(at("other.safetensors"), other);
  refuse("sweep other.safetensors --data standin --schemes linear:4 --threads 1 --limit 50 --out out",
         "another model (small.safetensors, not other.safetensors): choose another --out", 2);
  refuse(run + "--threads 1 --limit 40 --out out", "another --limit (50, not 40)", 2);
  refuse(run + "--threads 1 --out out", "another --limit (50, not 100)", 2);
  refuse(run + "--threads 1 --limit 50 --split train --out out", "another --split (test, not train)", 2);
  refuse(run + "--threads 1 --limit 50 --batch 7 --out out", "another --batch (128, not 7)", 2);
  refuse(run + "--threads 2 --limit 50 --out out", "another --threads (1, not 2)", 2);
  refuse(run + "--threads 1 --limit 50 --image-size 80 --out out", "another image size (64, not 80)", 2);
  write_standin(at("drawn"), 200, 100, 2);
  refuse("sweep small.safetensors --data drawn --schemes linear:4 --threads 1 --limit 50 --out out",
         "other images (standin, not drawn)", 2);
  // The same weights and images under other names are the same.
  fs::copy_file(at("small.safetensors"), at("copy.safetensors"));
  fs::rename(at("standin"), at("moved"));
  const Outcome same =
      succeed("sweep copy.safetensors --data moved --schemes linear:4 --threads 1 --limit 50 --out out");
  EXPECT_NE(same.out.find("2 rows are there already"), std::string::npos) << same;
}

TEST_F(SweepTest, SweepsWithoutAUsableSetupAreRefused) {
  succeed(sweep + "--schemes linear:4 --out out");
  const std::string setup = read_text(at("out/sweep.json"));
  for (const std::string& text : {setup.substr(0, setup.size() / 2), std::string("{}"), std::string("[]"),
                                  std::string("{\"format\":\"other\",\"version\":1}")}) {
    write_text(at("out/sweep.json"), text);
    refuse(sweep + "--schemes linear:4 --out out", "choose another --out", 1);
  }
  fs::remove(at("out/sweep.json"));
  refuse(sweep + "--schemes linear:4 --out out", "holds a results.jsonl but no sweep.json", 2);
  write_text(at("file"), "no folder");
  refuse(sweep + "--schemes linear:4 --out file", "file", 1);
  write_text(at("out/sweep.json"), setup);
  const FileDescriptor lock(open(at("out").c_str(), O_RDONLY | O_DIRECTORY));
  ASSERT_EQ(flock(lock.get(), LOCK_EX), 0);
  refuse(sweep + "--schemes linear:4 --out out", "another sweep is at work", 2);
}

TEST_F(SweepTest, WhatMakesNoSenseIsRefusedBeforeAnyWork) {
  refuse(sweep + "--schemes linear:9 --out out", "linear does not support 9 bits", 2);
  refuse(sweep + "--schemes linear:4,,nf4 --out out", "empty name", 2);
  refuse(sweep + "--schemes magic --out out", "unknown method 'magic'", 2);
  refuse(sweep + "--preset most --out out", "--preset", 2);
  succeed("pack small.safetensors");
  refuse("sweep small_4bit.safetensors --data standin --out out", "is packed already", 2);
  EXPECT_FALSE(fs::exists(at("out")));
}

TEST_F(SweepTest, ModelsAreKeptOnRequest) {
  without_gnuplot();
  const auto models = [&] {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(at("out")))
      if (entry.path().extension() == ".safetensors") names.insert(entry.path().filename().string());
    return names;
  };
  succeed(sweep + "--schemes linear:4,nf4 --out out");
  EXPECT_EQ(models(), std::set<std::string>{"float_right.safetensors"});
  const Outcome again = succeed(sweep + "--schemes linear:4,nf4 --out out --keep-models");
  EXPECT_EQ(again.out.find("loss"), std::string::npos) << "packed again, not measured again: " << again;
  EXPECT_EQ(models(), (std::set<std::string>{"float_right.safetensors", "linear_4_channel.safetensors",
                                             "nf4_4_block_64.safetensors"}));
  EXPECT_EQ(fs::file_size(at("out/linear_4_channel.safetensors")),
            row("out", "linear:4:channel").at("size").at("file"));

  // A kept model outlives a row that has to be measured again without keeping.
  write_text(at("out/results.jsonl"), first_line(read_text(at("out/results.jsonl"))) + "\n");
  succeed(sweep + "--schemes linear:4,nf4 --out out");
  EXPECT_TRUE(fs::exists(at("out/linear_4_channel.safetensors")));
}

TEST_F(SweepTest, TheNotebooksPresetWritesTheNotebooksFiles) {
  succeed(sweep + "--out out");
  EXPECT_EQ(rows("out").size(), 30U);
  for (int bits = 3; bits <= 8; ++bits) {
    const auto name = fmt::format("out/dt_quantized_model_bl_{}.safetensors", bits);
    EXPECT_EQ(to_string(model(name).at("features.0.weight").packed_values().scheme),
              fmt::format("dynamic-tree:{}:row:absolute", bits));
    const auto counts = json(fmt::format("out/dt_counts_bl_{}.json", bits));
    EXPECT_EQ(counts.at("counts").size(), static_cast<size_t>(bits));
    EXPECT_EQ(counts.at("counts"), row("out", fmt::format("simulated-dynamic-tree:{}", bits)).at("exponent_counts"));
    int64_t weights = 0;
    for (const auto& layer : counts.at("layers"))
      for (const int64_t count : layer.at("counts")) weights += count;
    EXPECT_EQ(weights, 37'669);
  }
  for (const char* name : {"accuracy_bits", "accuracy_size", "bytes_bits", "error_bits"})
    EXPECT_TRUE(fs::exists(at("out/plots") / (std::string(name) + ".gp"))) << name;
}

TEST_F(SweepTest, FormatsAgree) {
  succeed(sweep + few + "--out out");
  const auto results = json("out/report.json").at("results");
  ASSERT_EQ(results.size(), few_names.size());
  const std::vector<std::string> csv = lines_of(read_text(at("out/report.csv")));
  ASSERT_EQ(csv.size(), results.size() + 1);
  const std::vector<std::string> names = cells_of(csv[0]);
  const std::string markdown = read_text(at("out/report.md")), page = read_text(at("out/report.html"));
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& result = results[i];
    EXPECT_EQ(result.at("scheme"), few_names[i]);
    EXPECT_EQ(result, row("out", few_names[i]));
    const std::vector<std::string> cells = cells_of(csv[i + 1]);
    ASSERT_EQ(cells.size(), names.size());
    for (size_t c = 0; c < names.size(); ++c) {
      if (!result.contains(names[c])) continue;
      const auto& value = result.at(names[c]);
      EXPECT_EQ(cells[c], value.is_null()     ? ""
                          : value.is_string() ? value.get<std::string>()
                                              : value.dump())
          << names[c];
    }
    const std::string accuracy = fmt::format("{:.2f}", 100 * result.at("accuracy").get<double>());
    EXPECT_NE(markdown.find(fmt::format("| {} | {} | {}{} | {} |", few_names[i],
                                        i == 0                               ? "float"
                                        : result.at("simulated").get<bool>() ? "simulated"
                                                                             : "packed",
                                        result.at("bits").get<int>(),
                                        result.at("simulated").get<bool>() ? " claimed" : "", accuracy)),
              std::string::npos)
        << few_names[i];
    EXPECT_NE(page.find(fmt::format("<td class=\"text\">{}</td>", few_names[i])), std::string::npos);
  }
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_EQ(page.find("src="), std::string::npos) << "the page needs nothing beside it";
  EXPECT_NE(markdown.find("781,386 maxima, which are 3.125544 MB"), std::string::npos);
}

TEST_F(SweepTest, ShardsGiveTheReportOfOneRun) {
  without_gnuplot();
  succeed(sweep + few + "--out one");
  const std::string expected = report("one");
  // The line that docs/sweep.md gives for sbatch, with the variables that Slurm sets for each task
  // of --array=1-3, in the order in which tasks may well run.
  std::string script;
  std::istringstream document(read_text(fs::path(NIBBLENET_SOURCE) / "docs/sweep.md"));
  for (std::string line; std::getline(document, line);)
    if (line.find("$SLURM_ARRAY_TASK_ID") != std::string::npos) script = line;
  const std::string written = "tools/sweep MODEL --data DATA --out DIR ";
  ASSERT_TRUE(script.starts_with(written)) << script;
  script = tools_ + "/" + sweep + few + "--out parts " + script.substr(written.size());
  for (const int task : {3, 1, 2}) {
    std::vector<std::string> environment = environment_;
    environment.push_back(fmt::format("SLURM_ARRAY_TASK_ID={}", task));
    environment.insert(environment.end(),
                       {"SLURM_ARRAY_TASK_COUNT=3", "SLURM_ARRAY_TASK_MIN=1", "SLURM_ARRAY_TASK_MAX=3",
                        "SLURM_JOB_ID=7", "SLURM_PROCID=0", "SLURM_NTASKS=1"});
    const Outcome outcome =
        Child({"/bin/sh", "-c", script}, at(""), environment, at(fmt::format(".task{}", task)).string()).wait();
    ASSERT_EQ(outcome.code, 0) << outcome;
  }
  EXPECT_EQ(rows("parts/shard-1-of-3").size(), 3U);
  EXPECT_EQ(rows("parts/shard-3-of-3").size(), 2U);
  EXPECT_FALSE(fs::exists(at("parts/report.md")));
  succeed("sweep --merge --out parts --json merged.json");
  expect_same_report("parts", expected);
  EXPECT_EQ(json("merged.json").at("missing"), Json::array());

  // Again, and then as one sweep: every row is there, once.
  const std::string results = read_text(at("parts/results.jsonl"));
  succeed("sweep --merge --out parts");
  const Outcome whole = succeed(sweep + few + "--out parts");
  EXPECT_NE(whole.out.find("going on: 5 rows are there already"), std::string::npos) << whole;
  EXPECT_EQ(read_text(at("parts/results.jsonl")), results);
  expect_same_report("parts", expected);
}

TEST_F(SweepTest, MergingSaysWhichShardsAreMissing) {
  without_gnuplot();
  refuse("sweep --merge", "--merge needs --out", 2);
  refuse("sweep --merge --out none", "holds no shards", 2);
  succeed(sweep + few + "--shard 2/3 --out parts");
  const std::string whole = read_text(at("parts/shard-2-of-3/results.jsonl"));
  ASSERT_EQ(lines_of(whole).size(), 2U);  // float32, simulated-dynamic-tree:3
  write_text(at("parts/shard-2-of-3/results.jsonl"), whole.substr(0, whole.size() - 10));  // killed as it wrote
  const Outcome outcome = succeed("sweep --merge --out parts --json merged.json");
  for (const char* line :
       {"missing: shard 1/3: not begun", "missing: shard 2/3: 0 of 1 rows", "missing: shard 3/3: not begun"})
    EXPECT_NE(outcome.out.find(line), std::string::npos) << outcome;
  EXPECT_EQ(json("merged.json").at("missing").size(), 3U);
  succeed(sweep + few + "--shard 2/3 --out parts");
  EXPECT_EQ(read_text(at("parts/shard-2-of-3/results.jsonl")).substr(0, 100), whole.substr(0, 100));
  succeed("sweep --merge --out parts --json merged.json");
  EXPECT_EQ(json("merged.json").at("missing").size(), 2U);
  EXPECT_EQ(rows("parts").size(), 2U);
}

TEST_F(SweepTest, ShardsOfUnlikeRunsAreNotMerged) {
  without_gnuplot();
  const std::string schemes = "--schemes linear:4:row,nf4 --out parts ";
  for (const char* shard : {"", "0/2", "3/2", "1", "1/0", "-1/2", "1/2/3", "a/b", "1/2 ", "99999999999999999999/2"})
    if (*shard != '\0') refuse(sweep + schemes + fmt::format("\"--shard={}\"", shard), "--shard", 2);
  refuse("sweep --merge --shard 1/2 --out parts", "--shard", 2);
  refuse("sweep --merge --schemes nf4 --out parts", "--schemes", 2);
  succeed(sweep + schemes + "--shard 1/2");
  succeed("sweep small.safetensors --data standin --threads 1 --limit 40 " + schemes + "--shard 2/2");
  refuse("sweep --merge --out parts", "another --limit", 2);
  fs::remove_all(at("parts/shard-2-of-2"));
  succeed(sweep + schemes + "--shard 2/3");
  refuse("sweep --merge --out parts", "shards of 2 and of 3", 2);
  fs::remove_all(at("parts/shard-2-of-3"));

  succeed(sweep + schemes + "--shard 2/2");
  const auto write_rows = [&](const std::string& folder, const std::vector<Json>& documents) {
    std::string text;
    for (const Json& document : documents) text += document.dump() + "\n";
    write_text(at(folder) / "results.jsonl", text);
  };
  const std::string one = "parts/shard-1-of-2", two = "parts/shard-2-of-2";
  const std::vector<Json> rows_of_one = rows(one), rows_of_two = rows(two);
  // As on another processor. The float row was damaged once, so it stands behind the other.
  std::vector<Json> changed = {rows_of_two.at(1), rows_of_two.at(0)};
  changed.at(1).at("loss") = changed.at(1).at("loss").get<double>() + 1e-9;
  write_rows(two, changed);
  refuse("sweep --merge --out parts", "do not agree on the float model", 2);
  changed = rows_of_one;
  changed.at(1).at("calibration") = "200 images";
  write_rows(one, changed);
  changed = rows_of_two;
  changed.at(1).at("calibration") = "300 images";
  write_rows(two, changed);
  refuse("sweep --merge --out parts", "were calibrated differently (200 images, and 300 images)", 2);
  write_rows(one, rows_of_one);
  fs::remove_all(at(two));
  EXPECT_TRUE(rows("parts").empty()) << "what is refused adds no row";

  // Whatever a shard's folder holds: one line.
  for (const char* file : {"shard.json", "sweep.json"}) {
    const fs::path path = at("parts/shard-1-of-2") / file;
    const std::string whole = read_text(path);
    for (const std::string& damaged : {std::string("{"), std::string("[]"), std::string("{\"schemes\": 3}")}) {
      write_text(path, damaged);
      refuse("sweep --merge --out parts", file, 1);
    }
    write_text(path, whole);
  }
  succeed("sweep --merge --out parts");
  refuse("inspect small.safetensors --json parts/shard-1-of-2/shard.json", "belongs to a sweep", 2);
}

TEST_F(SweepTest, AShardWithoutSchemesMeasuresTheFloatModelAlone) {
  without_gnuplot();
  for (const int number : {1, 2, 3})
    succeed(sweep + fmt::format("--schemes linear:4:row,nf4 --shard {}/3 --out parts", number));
  EXPECT_EQ(rows("parts/shard-3-of-3").size(), 1U);
  succeed("sweep --merge --out parts --json merged.json");
  EXPECT_EQ(json("merged.json").at("missing"), Json::array());
  EXPECT_EQ(rows("parts").size(), 3U);
}

TEST_F(SweepTest, WithoutGnuplotTheReportHasNoPlots) {
  without_gnuplot();
  const Outcome outcome = succeed(sweep + few + "--out out");
  EXPECT_NE(outcome.out.find("no plots: gnuplot is not installed"), std::string::npos) << outcome;
  EXPECT_EQ(read_text(at("out/report.html")).find("<svg"), std::string::npos);
  EXPECT_EQ(read_text(at("out/report.md")).find("!["), std::string::npos);
}

}  // namespace
}  // namespace nibblenet::testing
