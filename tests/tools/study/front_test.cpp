#include "tools/study/front.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tools/study/report_files.h"

namespace nibblenet::tools {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// A packed row as far as a front looks at it: bytes resident, of the file, and of the compressed
/// one where there is one.
Row packed_row(const std::string& scheme, int64_t correct, int64_t resident, int64_t file = 0, int64_t compressed = 0) {
  Row row;
  row.scheme = scheme;
  row.parsed = parse_sweep_scheme(scheme);
  row.images = 100;
  row.correct = correct;
  row.accuracy = static_cast<double>(correct) / 100;
  row.size.emplace();
  row.size->resident.codes = resident;
  row.size->file = file;
  if (compressed > 0) row.compressed = CompressedFile{.file = compressed};
  row.document = {{"scheme", scheme}};
  return row;
}

Row float_row() {
  Row row;
  row.scheme = "float32";
  row.bits = 32;
  row.images = 100;
  row.correct = 80;
  row.size.emplace();
  row.size->file = 4000;
  row.document = {{"scheme", "float32"}};
  return row;
}

std::vector<std::string> front(const std::vector<Row>& rows, Place place) {
  std::vector<std::string> names;
  for (const Row* row : pareto_front(rows, place)) names.push_back(row->scheme);
  return names;
}

TEST(Front, HasWhatNothingBeatsInBothSizeAndAccuracy) {
  Row simulated;
  simulated.scheme = "simulated-fp8:8";
  simulated.parsed = parse_sweep_scheme(simulated.scheme);
  simulated.correct = 100;  // without a size it can be on no front
  const std::vector<Row> rows = {float_row(),
                                 simulated,
                                 packed_row("linear:8:row", 80, 900),
                                 packed_row("linear:8:channel", 80, 800),
                                 packed_row("linear:4:channel", 70, 400),
                                 packed_row("nf4:4:channel", 75, 400),
                                 packed_row("dynamic-tree:4:row", 75, 450),
                                 packed_row("linear:3:channel", 60, 300),
                                 packed_row("dynamic-tree:3:row", 50, 350)};
  EXPECT_THAT(front(rows, Place::resident), ElementsAre("linear:3:channel", "nf4:4:channel", "linear:8:channel"));
  EXPECT_THAT(front({float_row(), simulated}, Place::resident), ElementsAre());
}

/// Four packings: the second is compressed below the first, the last is beaten in its file alone.
std::vector<Row> four() {
  return {float_row(), packed_row("pack --bits 2", 60, 200, 220, 210), packed_row("pack --bits 4", 79, 400, 420, 190),
          packed_row("model trained", 78, 250, 180, 185), packed_row("linear:4:channel", 70, 300, 320)};
}

TEST(Front, OfFilesTheSmallestCounts) {
  const std::vector<Row> rows = four();
  EXPECT_EQ(rows[1].smallest_file(), 210);
  EXPECT_EQ(rows[3].smallest_file(), 180) << "compressing made it larger";
  EXPECT_EQ(rows[4].smallest_file(), 320) << "never compressed";
  EXPECT_THAT(front(rows, Place::file), ElementsAre("model trained", "pack --bits 4"));
  EXPECT_THAT(front(rows, Place::resident), ElementsAre("pack --bits 2", "model trained", "pack --bits 4"));
}

TEST(Front, TablesMarkIt) {
  const Section section = frontier_section(four(), {{"weights", 1000}});
  ASSERT_EQ(section.tables.size(), 1U);
  const Table& table = section.tables[0];
  std::vector<std::string> marks, times_smaller;
  for (const auto& row : table.rows) {
    ASSERT_EQ(row.size(), table.columns.size());
    marks.push_back(row[0] + ": " + row.back());
    times_smaller.push_back(row[5]);
  }
  EXPECT_THAT(marks, ElementsAre("float32: ", "pack --bits 2: resident", "pack --bits 4: resident, file",
                                 "model trained: resident, file", "linear:4:channel: "));
  EXPECT_THAT(times_smaller, ElementsAre("1.0", "19.0", "21.1", "22.2", "12.5"));
  EXPECT_TRUE(frontier_section({float_row(), packed_row("nf4", 1, 1)}, {{"weights", 1}}).heading.empty());
}

TEST(Front, FilesForMachinesMarkItToo) {
  const std::vector<Row> rows = four();
  const nlohmann::json fronts = report_json(rows, {}).at("fronts");
  EXPECT_EQ(fronts.at("file"), (nlohmann::json{"model trained", "pack --bits 4"}));
  EXPECT_EQ(fronts.at("resident"), (nlohmann::json{"pack --bits 2", "model trained", "pack --bits 4"}));
  const std::string text = csv(rows);
  EXPECT_THAT(text, HasSubstr(",front_resident,front_file,front_rest\n"));
  EXPECT_THAT(text, HasSubstr("\npack --bits 2,"));
  size_t marked = 0;
  for (size_t at = text.find(",true,true,true\n"); at != std::string::npos; at = text.find(",true,true,true\n", at + 1))
    ++marked;
  EXPECT_EQ(marked, 2U);
}

}  // namespace
}  // namespace nibblenet::tools
