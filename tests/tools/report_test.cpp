#include "tools/common/report.h"

#include <gtest/gtest.h>

#include "tests/support/small_network.h"

namespace nibblenet::tools {
namespace {

std::vector<SizeRow> ledger_of(const char* scheme) {
  StateDict dict = testing::small_alexnet(1);
  if (scheme != nullptr) testing::pack_all(dict, parse_scheme(scheme));
  const auto backend = make_backend("cpu", 1);
  return Network(*backend, std::move(dict)).ledger();
}

TEST(Report, ThousandsAreSeparated) {
  const std::vector<std::pair<int64_t, std::string>> cases = {{0, "0"},
                                                              {7, "7"},
                                                              {999, "999"},
                                                              {1000, "1,000"},
                                                              {22'210'912, "22,210,912"},
                                                              {100'000, "100,000"},
                                                              {-1, "-1"},
                                                              {-999, "-999"},
                                                              {-1000, "-1,000"},
                                                              {-123'456, "-123,456"},
                                                              {INT64_MAX, "9,223,372,036,854,775,807"},
                                                              {INT64_MIN, "-9,223,372,036,854,775,808"}};
  for (const auto& [value, text] : cases) EXPECT_EQ(thousands(value), text);
}

TEST(Report, MegabytesInBothUnits) {
  EXPECT_EQ(megabytes(0), "0.000 MB (0.000 MiB)");
  EXPECT_EQ(megabytes(1048576), "1.049 MB (1.000 MiB)");
}

TEST(Report, WilsonInterval) {
  struct Case {
    int64_t successes, trials;
    double low, high;
  };
  // statsmodels.stats.proportion.proportion_confint(k, n, method="wilson")
  const std::vector<Case> cases = {{0, 0, 0, 1},
                                   {0, 10, 0, 0.2775327998628892},
                                   {10, 10, 0.7224672001371107, 1},
                                   {5, 10, 0.2365930905125640, 0.7634069094874361},
                                   {10, 100, 0.05522913706067509, 0.1743656615049345}};
  for (const Case& c : cases) {
    const Interval interval = wilson_interval(c.successes, c.trials);
    EXPECT_NEAR(interval.low, c.low, 1e-9) << c.successes << " of " << c.trials;
    EXPECT_NEAR(interval.high, c.high, 1e-9) << c.successes << " of " << c.trials;
  }
}

TEST(Report, McNemarIsTheExactBinomialTest) {
  struct Case {
    int64_t only_a, only_b;
    double p;
  };
  // 2 P(X <= min) with X ~ Binomial(a + b, 1/2), at most 1.
  const std::vector<Case> cases = {{0, 0, 1},           {1, 0, 1},          {3, 3, 1},
                                   {0, 5, 2.0 / 32},    {1, 5, 14.0 / 64},  {2, 8, 112.0 / 1024},
                                   {10, 0, 2.0 / 1024}, {1, 9, 22.0 / 1024}};
  for (const Case& c : cases) {
    EXPECT_NEAR(mcnemar_p(c.only_a, c.only_b), c.p, 1e-12) << c.only_a << ", " << c.only_b;
    EXPECT_EQ(mcnemar_p(c.only_a, c.only_b), mcnemar_p(c.only_b, c.only_a));
  }
  // Far out nothing under- or overflows.
  EXPECT_NEAR(mcnemar_p(5000, 5000), 1, 1e-9);
  EXPECT_LT(mcnemar_p(6000, 4000), 1e-80);
  EXPECT_GE(mcnemar_p(10000, 0), 0);
}

TEST(Report, TheTableShowsTheSums) {
  for (const char* scheme :
       {static_cast<const char*>(nullptr), "linear:4:channel", "stable-embedding:3", "linear:3:row:zero-point"}) {
    SCOPED_TRACE(scheme == nullptr ? "float" : scheme);
    const std::vector<SizeRow> rows = ledger_of(scheme);
    const SizeRow total = sum(rows, "total");
    const std::string table = size_table(rows, 123'457, 4321);
    EXPECT_NE(table.find("123,457"), std::string::npos) << table;
    EXPECT_NE(table.find("4,321"), std::string::npos) << table;
    EXPECT_NE(table.find(thousands(total.weights)), std::string::npos) << table;
    EXPECT_NE(table.find(thousands(total.resident.total())), std::string::npos) << table;
    EXPECT_NE(table.find(thousands(std::llround(total.estimated.total()))), std::string::npos) << table;
    for (const SizeRow& row : rows) {
      EXPECT_NE(table.find(row.name), std::string::npos) << table;
      EXPECT_NE(table.find(thousands(row.resident.total())), std::string::npos) << table;
    }
  }
}

TEST(Report, SizeJsonAddsUp) {
  const std::vector<SizeRow> rows = ledger_of("stable-embedding:4");
  const nlohmann::json size = size_json(rows, 1000, 100);
  EXPECT_EQ(size.at("file"), 1000);
  EXPECT_EQ(size.at("header"), 100);
  EXPECT_EQ(size.at("layers").size(), 8U);
  const auto sum_over_layers = [&](const nlohmann::json::json_pointer& key) {
    double total = 0;
    for (const auto& layer : size.at("layers")) total += layer.at(key).get<double>();
    return total;
  };
  for (const char* key : {"/weights", "/groups", "/estimated/codes", "/estimated/scales", "/estimated/total",
                          "/resident/codes", "/resident/scales", "/resident/zero_points", "/resident/codebooks",
                          "/resident/block_ids", "/resident/padding", "/resident/biases", "/resident/total"}) {
    const nlohmann::json::json_pointer pointer(key);
    EXPECT_DOUBLE_EQ(size.at(pointer).get<double>(), sum_over_layers(pointer)) << key;
  }
}

}  // namespace
}  // namespace nibblenet::tools
