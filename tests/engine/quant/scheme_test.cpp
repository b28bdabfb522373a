#include "engine/quant/scheme.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <map>
#include <vector>

#include "tests/engine/quant/cases.h"

namespace nibblenet {
namespace {

using ::testing::HasSubstr;
using Kind = Granularity::Kind;

std::string usage_error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no UsageError";
}

TEST(MethodTable, IsIndexedByTheEnumAndNamesAreUnique) {
  for (size_t i = 0; i < method_table().size(); ++i) {
    const MethodTraits& traits = method_table()[i];
    EXPECT_EQ(static_cast<size_t>(traits.method), i);
    EXPECT_EQ(&traits_of(traits.method), &traits);
    EXPECT_EQ(parse_method(traits.name), traits.method);
    EXPECT_FALSE(traits.summary.empty());
    EXPECT_NO_THROW(validate(default_scheme(traits.method, traits.min_bits)));
    const bool says_sorted = traits.summary.find("magnitude-sorted blocks") != std::string_view::npos;
    EXPECT_EQ(traits.sorted, says_sorted) << traits.name;
  }
}

TEST(Scheme, EveryOneRoundTripsThroughItsText) {
  std::vector<Scheme> schemes = schemes_of_every_width(Method::trellis);
  for (const MethodTraits& traits : scalar_methods())
    std::ranges::copy(testing::schemes_of(traits), std::back_inserter(schemes));
  for (const Scheme& scheme : schemes) {
    const std::string text = to_string(scheme);
    ASSERT_NO_THROW(validate(scheme)) << text;
    ASSERT_EQ(parse_scheme(text), scheme) << text;
  }
}

TEST(Scheme, PartsLeftOutTakeTheMethodsDefaults) {
  const std::map<std::string, std::string> full_texts = {
      {"linear", "linear:4:channel"},
      {"linear:8", "linear:8:channel"},
      {"linear:3:row:f16", "linear:3:row:f16"},
      {"linear:4:f32:absolute", "linear:4:channel"},
      {"linear:zero-point", "linear:4:channel:zero-point"},
      {"fp8-e4m3", "fp8-e4m3:8:row"},
      {"dynamic-tree", "dynamic-tree:4:row"},
      {"dynamic-tree:signed", "dynamic-tree:4:row"},
      {"dynamic-tree:8:channel:absolute", "dynamic-tree:8:channel:absolute"},
      {"stable-embedding:sorted:f16", "stable-embedding:4:sorted:f16"},
      {"stable-embedding:6:sorted:4096", "stable-embedding:6:sorted:4096"},
      {"stable-embedding-fp8", "stable-embedding-fp8:8:sorted"},
      {"nf4", "nf4:4:block:64"},
      {"fp4:4:tile:8x16:f16:signed", "fp4:4:tile:8x16:f16:signed"},
  };
  for (const auto& [text, full] : full_texts) EXPECT_EQ(to_string(parse_scheme(text)), full);
}

TEST(Scheme, RefusesWhatDoesNotExistAndListsWhatDoes) {
  const std::map<std::string, std::string> expected = {
      {"", "supported: linear, fp8-e4m3, fp8-e5m2, dynamic-tree"},
      {"int4", "supported: linear"},
      {"linear:1", "supported: 2 to 8 bits"},
      {"linear:9", "supported: 2 to 8 bits"},
      {"linear:4294967300", "supported: 2 to 8 bits"},
      {"linear:-4", "supported: tensor, channel, row"},
      {"dynamic-tree:2", "supported: 3 to 8 bits"},
      {"nf4:3", "supported: 4 bits only"},
      {"fp8-e4m3:4", "supported: 8 bits only"},
      {"linear:4:sorted", "supported: tensor, channel, row, block:N, tile:RxC"},
      {"stable-embedding:4:row", "supported: sorted, sorted:B"},
      {"stable-embedding:4:sorted:0", "sizes of at least 1"},
      {"linear:4:block", "supported: tensor, channel, row, block:N"},
      {"linear:4:block:0", "sizes of at least 1"},
      {"linear:4:block:64x", "supported: tensor"},
      {"linear:4:block:99999999999999999999", "supported: tensor"},
      {"linear:4:tile:8", "supported: tensor"},
      {"linear:4:tile:8x", "supported: tensor"},
      {"linear:4:tile:8x8x8", "supported: tensor"},
      {"linear:4:channel:bf16", "[:f16|f32]"},
      {"linear:4:channel:f16:f16", "[:f16|f32]"},
      {"linear:4:channel:signed:f16", "[:f16|f32]"},
      {"linear:4:channel:", "[:f16|f32]"},
      {"linear:4:channel:signed:zero-point", "supported: absolute"},
      {"nf4:4:block:64:zero-point", "supported by: linear"},
  };
  for (const auto& [text, part] : expected)
    EXPECT_THAT(usage_error_of([&] { parse_scheme(text); }), HasSubstr(part)) << text;

  Scheme scheme;
  scheme.granularity = {Kind::block, 0};
  EXPECT_THAT(usage_error_of([&] { validate(scheme); }), HasSubstr("at least 1"));
  scheme.granularity = {Kind::tile, 4, -1};
  EXPECT_THAT(usage_error_of([&] { validate(scheme); }), HasSubstr("at least 1"));
  EXPECT_THAT(usage_error_of([] { parse_scale_type("f64"); }), HasSubstr("f32, f16"));
  EXPECT_THAT(usage_error_of([] { parse_scale_sign("both"); }), HasSubstr("absolute, signed"));
}

TEST(GroupMap, NumbersTheGroupsInOrderAndRunsStayInside) {
  const MethodTraits& traits = traits_of(Method::linear);
  for (const Granularity& granularity : testing::granularities_of(traits))
    for (const Shape& shape : testing::awkward_shapes) {
      SCOPED_TRACE(to_string(granularity) + " of " + to_string(shape));
      const GroupMap map = make_group_map(granularity, shape);
      const int64_t inner = shape.inner_elements();
      // Sorting the keys gives the row-major numbering.
      std::map<testing::GroupKey, int64_t> numbers;
      for (int64_t o = 0; o < shape[0]; ++o)
        for (int64_t k = 0; k < inner; ++k) numbers[testing::group_key(granularity, shape, o, k)] = 0;
      int64_t count = 0;
      for (auto& [key, number] : numbers) number = count++;
      ASSERT_EQ(map.groups, count);

      for (int64_t o = 0; o < shape[0]; ++o)
        for (int64_t k = 0; k < inner; ++k) {
          const int64_t group = map.group(o, k);
          ASSERT_EQ(group, numbers.at(testing::group_key(granularity, shape, o, k))) << o << " " << k;
          const int64_t run = map.run(k);
          ASSERT_GE(run, 1);
          ASSERT_LE(k + run, inner);
          for (int64_t i = k; i < k + run; ++i) ASSERT_EQ(map.group(o, i), group);
          // Runs are as long as they can be, but for tiles that continue in the next run of the
          // last dimension.
          const bool is_longest = k + run == inner || granularity.kind == Kind::tile || map.group(o, k + run) != group;
          ASSERT_TRUE(is_longest) << k;
        }
    }
}

TEST(GroupMap, BandsOfChannelsShareNoGroups) {
  for (const Granularity& granularity : testing::granularities_of(traits_of(Method::linear)))
    for (const Shape& shape : testing::awkward_shapes) {
      const GroupMap map = make_group_map(granularity, shape);
      for (int64_t o = 1; o < shape[0]; ++o) {
        const bool same_band = o % map.channels_in_common() != 0;
        const bool same_group = map.group(o, 0) == map.group(o - 1, 0);
        EXPECT_EQ(same_band, same_group) << to_string(granularity) << " of " << to_string(shape) << " at " << o;
      }
    }
}

TEST(GroupMap, SortedBlocksAreAsLongAsTheMatrixHasRows) {
  EXPECT_EQ(make_group_map({Kind::sorted}, {4096, 9216}).groups, 9216);
  EXPECT_EQ(make_group_map({Kind::sorted}, {10, 1024}).groups, 1024);
  EXPECT_EQ(make_group_map({Kind::sorted, 7}, {17, 65}).groups, 158);
  EXPECT_THROW(make_group_map({Kind::sorted, 1}, {4096, 9216}), ShapeError) << "26 bits for a block id";
  EXPECT_NO_THROW(make_group_map({Kind::sorted, 2}, {4096, 9216}));
}

TEST(GroupMap, RefusesShapesThatAreNoWeights) {
  const std::vector<Shape> shapes = {Shape{}, Shape{3}, Shape{3, 3, 3}, Shape{0, 4}, Shape{4, 0, 3, 3}};
  for (const Shape& shape : shapes) EXPECT_THROW(make_group_map({Kind::channel}, shape), ShapeError);
}

}  // namespace
}  // namespace nibblenet
