#include "kernels/cuda/routes.h"

#include <gtest/gtest.h>

#include "kernels/cuda/gemm/wgmma_fit.h"
#include "tests/support/route_table.h"

// Tests of the table of routes, without a GPU and without kernels. tests/hostexec checks that
// launchers start what it says.

namespace nibblenet {
namespace {

using testing::RouteColumn;
using testing::RouteLayer;
using testing::RouteQuestion;

WeightTraits traits_of(const RouteQuestion& q) {
  const Shape& shape = q.layer.weight;
  if (q.scheme == "float32") return nibblenet::traits_of(Precision::float32, WeightLayout::channels);
  if (q.scheme == "float16") return nibblenet::traits_of(Precision::float16, best_layout(shape));
  if (q.scheme == "trained") {
    WeightTraits traits = nibblenet::traits_of(Precision::float16, trained_layout(shape, q.architecture == 90));
    traits.trains = true;
    return traits;
  }
  PackedTensor packed{.scheme = parse_scheme(q.scheme), .shape = shape};
  const auto groups = static_cast<size_t>(make_group_map(packed.scheme.granularity, shape).groups);
  packed.scales.resize(groups * (packed.scheme.scale == ScaleType::f16 ? 2 : 4));
  if (nibblenet::traits_of(packed.scheme.method).trained) packed.codebook.resize(size_t{1} << packed.scheme.bits);
  return nibblenet::traits_of(packed, best_layout(packed));
}

ProductCase case_of(const RouteQuestion& q) {
  const Shape x = q.layer.linear() ? Shape{q.batch, q.layer.weight[1]}
                                   : Shape{q.batch, q.layer.size, q.layer.size, q.layer.weight[1]};
  ProductCase c = product_case(x, product_shape(x, q.layer.weight, q.layer.window), q.layer.window, traits_of(q));
  c.x = q.precision;
  c.y = q.column == RouteColumn::forward && q.layer.last() ? Precision::float32 : q.precision;
  return c;
}

std::string text_of(const Route& route) {
  return fmt::format("{}{}{}{}", to_string(route.expansion), route.expands_weights() ? " " : "",
                     to_string(route.product), route.flattens ? " flattens" : "");
}

std::string answer_to(const RouteQuestion& q) {
  const GpuTraits gpu = parse_gpu(fmt::format("sm_{}", q.architecture));
  ProductCase c = case_of(q);
  switch (q.column) {
    case RouteColumn::forward:
      return text_of(route_forward(c, gpu));
    case RouteColumn::pooled:
      for (const bool flat : {true, false}) {
        c.pool = {testing::route_pool, flat};
        if (const auto route = flat && !q.layer.flattened ? std::nullopt : route_pooled(c, gpu)) return text_of(*route);
      }
      return "-";
    case RouteColumn::folded:
      return "folded";
    case RouteColumn::data_gradient:
      return std::string(to_string(route_data_gradient(c, gpu).product));
    case RouteColumn::weight_gradient:
      return std::string(to_string(route_weight_gradient(c, gpu).product));
    case RouteColumn::step: {
      const GradientRoute route = route_weight_gradient(c, gpu);
      return route.fuses() ? std::string(to_string(route.product)) : "-";
    }
  }
  return "";
}

TEST(Routes, AreThoseOfTheTable) { testing::expect_routes_of_the_table(answer_to); }

/// The third convolution of one image, packed by the default of 4 bits after calibration.
const RouteQuestion features_6 = {RouteColumn::forward,       Precision::float16, 90,
                                  testing::route_layers()[2], "kmeans:4:channel", 1};

TEST(Routes, GoToTheNextRowWhereOneIsLeftOut) {
  const ProductCase c = case_of(features_6);
  GpuTraits gpu = parse_gpu("sm_90");
  const auto route_with = [&](std::string_view kernels) {
    gpu.choice = parse_kernels(kernels);
    return text_of(route_forward(c, gpu));
  };
  EXPECT_EQ(route_with(""), "few_pixels");
  EXPECT_EQ(route_with("fast,-few_pixels"), "wgmma_unpacked");
  EXPECT_EQ(route_with("fast,-few_pixels,-wgmma_unpacked"), "superblock_rows wgmma");
  EXPECT_EQ(route_with("portable,-few_pixels"), "mma");
  EXPECT_EQ(route_with("fast,-few_pixels,-wgmma_unpacked,-wgmma"), "mma");
  EXPECT_EQ(route_with("portable,-few_pixels,-mma"), "plain");
  EXPECT_EQ(route_with("fast,-few_pixels,-pdl"), "wgmma_unpacked");
  EXPECT_FALSE(parse_kernels("fast,-few_pixels,-pdl").pdl);
  EXPECT_TRUE(parse_kernels("fast,-few_pixels").pdl);
  EXPECT_TRUE(parse_kernels("fast,-pdl").clusters);
  EXPECT_FALSE(parse_kernels("portable,-clusters,-pdl").clusters);
  EXPECT_FALSE(parse_kernels("fast,-pdl").without(Product::few_rows).pdl);
  EXPECT_EQ(route_with("plain"), "plain");
}

TEST(Routes, LeaveOutWgmmaWhereAnIntCannotCountActivations) {
  ProductCase c = case_of(features_6);
  EXPECT_TRUE(wgmma::fits(c) && wgmma::fits_unpacked(c));
  c.sizes.n = 600'000;  // more than 2^31 times eight
  EXPECT_FALSE(wgmma::fits(c) || wgmma::fits_unpacked(c));
}

TEST(Routes, AreRefusedWhereARowIsUnknown) {
  for (const auto* unknown : {"slow", "fast,-plain", "fast,-slow", "fast,few_rows", "-few_rows", "fast,,"})
    EXPECT_THROW(parse_kernels(unknown), UsageError) << unknown;
  EXPECT_THROW(parse_gpu("sm_70"), UsageError);
}

TEST(Routes, AnswerReports) {
  const RouteLayer& last = testing::route_layers()[4];
  const PackedTensor packed{.scheme = parse_scheme("nf4:4:channel"), .shape = last.weight};
  const WeightTraits weight = nibblenet::traits_of(packed, WeightLayout::superblocks);
  ForwardQuestion question{.x = {1, 13, 13, 256},
                           .precision = Precision::float16,
                           .y = Precision::float16,
                           .window = last.window,
                           .pool = testing::route_pool,
                           .flat = true};
  const auto pooled = route_of(question, last.weight, weight, parse_gpu("sm_90"));
  ASSERT_TRUE(pooled.has_value());
  EXPECT_EQ(pooled->kernel, "few_pixels");
  EXPECT_TRUE(pooled->pools && pooled->flattens && pooled->expansion.empty());
  question.x = {64, 13, 13, 256};
  EXPECT_FALSE(route_of(question, last.weight, weight, parse_gpu("sm_90")).has_value());
  question.pool.size = 0;
  const auto alone = route_of(question, last.weight, weight, parse_gpu("sm_90"));
  EXPECT_EQ(alone->kernel, "wgmma_unpacked");
  EXPECT_EQ(alone->expansion, "");
  EXPECT_FALSE(alone->pools);
}

TEST(Routes, DependOnAlignment) {
  ProductCase c = case_of(features_6);
  const GpuTraits gpu = parse_gpu("sm_90");
  c.x_alignment = 8;
  EXPECT_EQ(route_forward(c, gpu).product, Product::plain);
}

}  // namespace
}  // namespace nibblenet
