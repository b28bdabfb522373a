#include "tools/study/document.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibblenet::tools {
namespace {

using ::testing::HasSubstr;

TEST(Document, SaysWhatRowsCostAndHowTheNotebooksCountedThem) {
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
  EXPECT_THAT(text, HasSubstr("31 bits each, the rows' maxima are 3.02787075 MB: the notebooks printed 3.02787075 MB"));
}

/// A row of a scheme on 50 images, of which float has 30 right.
Row row_on_50(const std::string& scheme, int64_t only_float, int64_t only_this, double p) {
  Row row;
  row.scheme = scheme;
  if (scheme != "float32") row.parsed = parse_sweep_scheme(scheme);
  row.bits = 4;
  row.images = 50;
  row.correct = 30 - only_float + only_this;
  row.accuracy = static_cast<double>(row.correct) / 50;
  row.only_float = only_float;
  row.only_this = only_this;
  row.mcnemar_p = p;
  return row;
}

TEST(Document, StatesADifferenceOnlyWhereThePairedTestDoes) {
  std::vector<Row> rows = {row_on_50("float32", 0, 0, 1), row_on_50("simulated-dynamic-tree:4", 1, 4, 0.375),
                           row_on_50("dynamic-tree:4:row:absolute", 12, 1, 0.0034),
                           row_on_50("dynamic-tree:4:row", 30, 0, 1e-9)};
  rows[1].need = ValueNeed{.distinct = 200, .bits = 8};
  for (size_t i : {2, 3}) rows[i].size.emplace();
  const nlohmann::json setup = {{"model", "m"},           {"data", "d"},     {"data_description", "images"},
                                {"split", "test"},        {"images", 50},    {"image_size", 224},
                                {"batch", 128},           {"device", "cpu"}, {"threads", 2},
                                {"precision", "float32"}, {"weights", 1000}, {"row_groups", 10},
                                {"channel_groups", 10}};
  std::string text;
  for (const Section& section : make_document(rows, setup).sections)
    for (const std::string& paragraph : section.paragraphs) text += paragraph;
  EXPECT_THAT(text, HasSubstr("takes 8 bits: no difference from float that 50 images can show (−1 +4, p = 0.3750)."));
  EXPECT_THAT(text, HasSubstr("absolute maxima: -22.00 points against float (−12 +1, p = 0.0034);"));
  EXPECT_THAT(text, HasSubstr("at no cost in size: -60.00 points against float (−30 +0, p < 0.0001)."));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("+6.00")));
}

}  // namespace
}  // namespace nibblenet::tools
