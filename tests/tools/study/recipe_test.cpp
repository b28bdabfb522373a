#include "tools/study/recipe.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tools/study/plan.h"

namespace nibblenet::tools {
namespace {

TEST(Recipe, ReadsAsItIsWritten) {
  EXPECT_EQ(to_string(parse_recipe("pack --bits 3  --calibrated ")), "pack --bits 3 --calibrated");
  EXPECT_EQ(to_string(parse_recipe("pack")), "pack");
  for (const char* text :
       {"pack --bits 2", "pack --bits 4 --calibrated --layer classifier.[14]=kmeans:2",
        "pack --method nf4 --granularity block:16 --scale f16 --range search",
        "pack --target-file 8.2 --calibrated --rate-weight 1.4", "pack --target-bits 2.15 --calibrated",
        "pack --method linear --bits 6 --range step:2 --range features.*=step:1",
        "pack --bits 3 --calibrated --rounding nearest"})
    EXPECT_EQ(to_string(parse_sweep_scheme(text)), text);
}

TEST(Recipe, FlagsArePacks) {
  const PackingFlags plain = flags_of(parse_recipe("pack --bits 3"));
  EXPECT_EQ(plain.scheme.bits, 3);
  EXPECT_FALSE(plain.calibration.calibrated());
  EXPECT_EQ(plain.calibration.quantize_options("").rounding, Rounding::nearest);
  const PackingFlags calibrated = flags_of(parse_recipe("pack --calibrated --layer classifier.*=linear:8"));
  EXPECT_TRUE(calibrated.calibration.calibrated());
  EXPECT_EQ(calibrated.calibration.quantize_options("").rounding, Rounding::gptq);
  EXPECT_EQ(calibrated.calibration.quantize_options("").range, Range::search);
  EXPECT_EQ(calibrated.scheme.layers, std::vector<std::string>{"classifier.*=linear:8"});
  EXPECT_EQ(flags_of(parse_recipe("pack --target-bits 2.5")).allocation.target_bits, 2.5);
  EXPECT_TRUE(flags_of(parse_recipe("pack --target-file 8.2")).allocation.by_compressed()) << "of the compressed file";
}

TEST(Recipe, WhatPackDoesNotDoIsRefused) {
  for (const char* text :
       {"pack --bits 9", "pack --bits", "pack --magic", "pack model.safetensors", "pack --help", "pack --rounding gptq",
        "pack --bits 4 --target-bits 3", "pack --calibrate data", "pack --calibration file", "pack --layer x",
        "pack --layer 'x=nf4'", "pack --bits 4;", "pack --method nf4 --bits 3", "packs", "pack\n"})
    EXPECT_THROW(parse_sweep_scheme(text), UsageError) << text;
}

TEST(ModelFile, RowsAreNamedAfterFiles) {
  EXPECT_EQ(to_string(model_file("folder/small_2bit-qat.safetensors")), "model small_2bit-qat");
  EXPECT_EQ(parse_sweep_scheme("model small_2bit-qat"),
            SweepScheme(model_file("elsewhere/small_2bit-qat.safetensors")));
  for (const char* path : {"", "a b.safetensors", "it's.safetensors", "`x`.safetensors", "a|b", "<b>.safetensors"})
    EXPECT_THROW(model_file(path), UsageError) << path;
  for (const char* text : {"model ", "model", "model a b", "model '"})
    EXPECT_THROW(parse_sweep_scheme(text), UsageError) << text;
}

}  // namespace
}  // namespace nibblenet::tools
