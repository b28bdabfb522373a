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

}  // namespace
}  // namespace nibblenet::tools
