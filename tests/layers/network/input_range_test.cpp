#include "layers/network/input_range.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibblenet {
namespace {

TEST(InputRange, IsReadAsItWasWritten) {
  std::map<std::string, std::string> metadata;
  set_input_range(metadata, "features.3", 0.1F);
  const InputRange range = input_range(metadata, "features.3", true);
  EXPECT_EQ(range.largest, 0.1F);
  EXPECT_FALSE(range.is_signed);
}

TEST(InputRange, IsEachImagesOwnWithoutAnEntry) {
  const InputRange range = input_range({}, "features.0", false);
  EXPECT_EQ(range.largest, 0.0F);
  EXPECT_TRUE(range.is_signed);
}

TEST(InputRange, HasTheStepsThatWereWritten) {
  std::map<std::string, std::string> metadata;
  EXPECT_EQ(input_range(metadata, "features.3", true).steps, 255);
  set_input_steps(metadata, "features.3", 127);
  EXPECT_EQ(input_range(metadata, "features.3", true).steps, 127);
  EXPECT_EQ(input_range(metadata, "features.6", true).steps, 255);
  set_input_steps(metadata, "features.3", 255);
  EXPECT_TRUE(metadata.empty());
  EXPECT_EQ(input_range({{"input_steps:features.3", "255"}}, "features.3", true).steps, 255);
  for (const char* text : {"", "0", "1", "126", "128", "256", "-127", "127.0", " 127", "127 ", "0x7F"}) {
    SCOPED_TRACE(text);
    EXPECT_THROW(input_range({{"input_steps:features.3", text}}, "features.3", true), FormatError);
  }
}

TEST(InputRange, RefusesWhatIsNoPositiveNumber) {
  for (const char* text : {"", "0", "-1", "nan", "inf", "1e-40", "1e99", "1.5x", " 1", "0x1"}) {
    SCOPED_TRACE(text);
    EXPECT_THROW(input_range({{"input_range:features.3", text}}, "features.3", true), FormatError);
  }
}

}  // namespace
}  // namespace nibblenet
