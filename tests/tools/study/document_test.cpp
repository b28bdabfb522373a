#include "tools/study/document.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibblenet::tools {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// A packed row as far as a front looks at it.
Row packed_row(const std::string& scheme, int64_t correct, int64_t bytes) {
  Row row;
  row.scheme = scheme;
  row.parsed = parse_sweep_scheme(scheme);
  row.images = 100;
  row.correct = correct;
  row.size.emplace();
  row.size->resident.codes = bytes;
  return row;
}

std::vector<std::string> front(const std::vector<Row>& rows) {
  std::vector<std::string> names;
  for (const Row* row : pareto_front(rows)) names.push_back(row->scheme);
  return names;
}

TEST(Document, TheFrontHasWhatNothingBeatsInBothSizeAndAccuracy) {
  Row float_model;
  float_model.scheme = "float32";
  Row simulated;
  simulated.scheme = "simulated-fp8:8";
  simulated.parsed = parse_sweep_scheme(simulated.scheme);
  simulated.correct = 100;  // without a size it can be on no front
  const std::vector<Row> rows = {float_model,
                                 simulated,
                                 packed_row("linear:8:row", 80, 900),
                                 packed_row("linear:8:channel", 80, 800),
                                 packed_row("linear:4:channel", 70, 400),
                                 packed_row("nf4:4:channel", 75, 400),
                                 packed_row("dynamic-tree:4:row", 75, 450),
                                 packed_row("linear:3:channel", 60, 300),
                                 packed_row("dynamic-tree:3:row", 50, 350)};
  EXPECT_THAT(front(rows), ElementsAre("linear:3:channel", "nf4:4:channel", "linear:8:channel"));
  EXPECT_THAT(front({float_model, simulated}), ElementsAre());
}

TEST(Document, SaysWhatRowsCostAndHowTheSeedCountedThem) {
  Row float_model;
  float_model.scheme = "float32";
  float_model.images = 100;
  const nlohmann::json setup = {{"model", "m"},           {"data", "d"},           {"data_description", "images"},
                                {"split", "test"},        {"images", 100},         {"image_size", 224},
                                {"batch", 128},           {"device", "cpu"},       {"threads", 2},
                                {"precision", "float32"}, {"weights", 44'421'824}, {"row_groups", 781'386},
                                {"channel_groups", 6'282}};
  std::string text;
  for (const Section& section : make_document({float_model}, setup).sections)
    for (const std::string& paragraph : section.paragraphs) text += paragraph;
  EXPECT_THAT(text, HasSubstr("781,386 rows, 3.125544 MB of maxima"));
  EXPECT_THAT(text, HasSubstr("channel takes 6,282 of them, 0.025128 MB"));
  EXPECT_THAT(text, HasSubstr("31 bits each, the rows' maxima are 3.02787075 MB: the seed printed 3.02787075 MB"));
}

}  // namespace
}  // namespace nibblenet::tools
