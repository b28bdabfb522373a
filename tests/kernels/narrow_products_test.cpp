#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/quant/bits.h"
#include "engine/quant/byte_values.h"
#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/narrow_kernels.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

// Products in int8 and bfloat16, on every instruction set that this processor has.

namespace nibblenet {

void PrintTo(InstructionSet set, std::ostream* out) { *out << to_string(set); }

namespace {

using testing::conv2d;
using testing::dequantized;
using testing::linear;
using testing::quantized;
using testing::relative_error;
using testing::same_bits;
using testing::uniform;
using testing::Values;

std::vector<InstructionSet> sets_here() {
  std::vector<InstructionSet> sets;
  for (int i = 0; i <= static_cast<int>(best_instruction_set()); ++i) sets.push_back(static_cast<InstructionSet>(i));
  return sets;
}

/// A product, as a convolution. A linear layer is one of single pixels.
struct Product {
  std::string scheme;
  Shape x;
  Shape w;
  Window window = {};
  bool is_linear() const { return w.rank() == 2; }
};

/// Odd numbers of channels, pixels and panels; padding and strides; images with three colours.
const std::vector<Product> products = {
    {"linear:4:channel", {2, 13, 11, 3}, {8, 3, 11, 11}, {11, 4, 2}},
    {"linear:2:channel:zero-point", {3, 6, 5, 5}, {17, 5, 3, 3}, {3, 1, 1}},
    {"nf4:4:channel:f16", {1, 5, 7, 64}, {67, 64, 3, 3}, {3, 2, 1}},
    {"kmeans:3:channel", {5, 4, 4, 16}, {130, 16, 1, 1}, {1, 1, 0}},
    {"linear:8:channel", {2, 5, 5, 7}, {3, 7, 5, 5}, {5, 1, 2}},
    {"linear:5:tensor", {1, 1031}, {70, 1031}},
    {"linear:6:channel", {7, 40}, {64, 40}},
    {"linear:7:channel:zero-point", {7, 129}, {131, 129}},
    {"linear:3:channel:zero-point", {100, 260}, {20, 260}},
    {"kmeans:8:channel", {6, 260}, {33, 260}},
    {"nf4:4:channel", {2, 300}, {10, 300}},
};

/// Convolutions by minimal filtering, where inputs have 127 steps: few and many channels, even and
/// odd columns, fewer columns than a pair, no and much padding, several panels.
const std::vector<Product> filtered_products = {
    {"kmeans:4:channel", {2, 6, 7, 64}, {67, 64, 3, 3}, {3, 1, 1}},
    {"kmeans:3:channel", {3, 9, 12, 8}, {130, 8, 5, 5}, {5, 1, 2}},
    {"linear:6:channel", {1, 5, 4, 4}, {3, 4, 3, 3}, {3, 1, 0}},
    {"linear:5:channel:zero-point", {2, 5, 6, 36}, {17, 36, 5, 5}, {5, 1, 0}},
    {"linear:2:tensor", {1, 1, 1, 20}, {16, 20, 5, 5}, {5, 1, 2}},
    {"kmeans:2:channel:f16", {2, 3, 1, 132}, {33, 132, 3, 3}, {3, 1, 2}},
};
/// Convolutions whose inputs have 127 steps, but not so: by their stride, by their channels, their
/// columns, by their values.
const std::vector<Product> unfiltered_products = {
    {"kmeans:4:channel", {2, 6, 7, 16}, {9, 16, 3, 3}, {3, 2, 1}},
    {"kmeans:4:channel", {2, 6, 7, 6}, {9, 6, 3, 3}, {3, 1, 1}},
    {"linear:4:channel", {2, 6, 7, 8}, {9, 8, 1, 1}, {1, 1, 0}},
    {"linear:8:channel", {2, 6, 7, 8}, {9, 8, 3, 3}, {3, 1, 1}},
    {"nf4:4:channel", {2, 6, 7, 8}, {9, 8, 5, 5}, {5, 1, 2}},
};

Values run(CpuBackend& backend, const Product& p, const Values& x, Weight& w, const Values& bias, Epilogue epilogue) {
  return p.is_linear() ? linear(backend, x, w, bias, epilogue) : conv2d(backend, x, w, bias, p.window, epilogue);
}

Values inputs_of(const Product& p, bool is_signed) {
  Values x = uniform(p.x, 1);
  for (float& value : x.data) value = is_signed ? value : std::max(value, 0.0F);
  return x;
}

/// The product in integers, one by one: what docs/kernels.md says that int8 computes.
Values in_integers(const Product& p, const Values& x, const PackedTensor& packed, const Values& bias, InputRange range,
                   Epilogue epilogue) {
  const Codebook codebook = codebook_of(packed);
  const PackedView view = view_of(packed, codebook);
  const ByteValues values = byte_values(view);
  const int64_t n_size = p.x[0], h_size = p.is_linear() ? 1 : p.x[1], w_size = p.is_linear() ? 1 : p.x[2];
  const int64_t c_size = p.w[1], k_size = p.w[0], side = p.window.size;
  const int64_t rows = p.window.output(h_size), columns = p.window.output(w_size);
  Values y(p.is_linear() ? Shape{n_size, k_size} : Shape{n_size, rows, columns, k_size});
  for (int64_t n = 0; n < n_size; ++n) {
    const float* image = x.data.data() + n * h_size * w_size * c_size;
    const float largest = range.largest > 0 ? range.largest : largest_magnitude(image, h_size * w_size * c_size);
    const auto most = static_cast<float>(range.is_signed ? 127 : range.steps);
    const float step = largest / most;
    const auto rounded = [&](int64_t h, int64_t w, int64_t c) -> int64_t {
      if (h < 0 || h >= h_size || w < 0 || w >= w_size) return 0;
      const float scaled = image[(h * w_size + w) * c_size + c] * (1.0F / step);
      return std::lrint(std::clamp(scaled, range.is_signed ? -128.0F : 0.0F, most));
    };
    for (int64_t i = 0; i < rows * columns; ++i)
      for (int64_t k = 0; k < k_size; ++k) {
        const int64_t group = view.groups.group(k, 0);
        const int zero = view.zero_points != nullptr ? view.zero_points[group] : 0;
        int64_t sum = 0;
        for (int64_t c = 0; c < c_size; ++c)
          for (int64_t tap = 0; tap < side * side; ++tap) {
            const uint32_t code = read_field(view.codes + k * view.code_stride, c * side * side + tap, view.bits);
            sum +=
                (values.bytes[code] - zero) * rounded(i / columns * p.window.stride - p.window.padding + tap / side,
                                                      i % columns * p.window.stride - p.window.padding + tap % side, c);
          }
        const float factor = values.unit * view.step(group) * step;
        const float out = std::fma(static_cast<float>(sum), factor, bias.data[static_cast<size_t>(k)]);
        y.data[static_cast<size_t>((n * rows * columns + i) * k_size + k)] =
            epilogue == Epilogue::relu ? std::max(out, 0.0F) : out;
      }
  }
  return y;
}

void expect_products_of_integers(const std::vector<Product>& cases, const std::vector<InputRange>& ranges) {
  for (const Product& p : cases) {
    const PackedTensor packed = quantized(p.w, parse_scheme(p.scheme), 3);
    const Values bias = uniform({p.w[0]}, 2);
    for (const InputRange& range : ranges) {
      const Values x = inputs_of(p, range.is_signed);
      for (const Epilogue epilogue : {Epilogue::none, Epilogue::relu}) {
        const Values expected = in_integers(p, x, packed, bias, range, epilogue);
        for (const InstructionSet set : sets_here()) {
          SCOPED_TRACE(fmt::format("{} of {}, {}, largest {}{}", p.scheme, to_string(p.w), to_string(set),
                                   range.largest, range.is_signed ? ", signed" : ""));
          CpuBackend backend(2);
          backend.limit(set);
          const auto weight = backend.make_weight(packed, Precision::int8, range);
          ASSERT_EQ(weight->product_precision(), Precision::int8);
          EXPECT_TRUE(same_bits(run(backend, p, x, *weight, bias, epilogue), expected));
        }
      }
    }
  }
}

TEST(Int8Products, AreThoseOfTheIntegersOnEveryInstructionSet) {
  expect_products_of_integers(products, {{0.7F, false}, {0.7F, true}, {0, false}, {0, true}});
}

TEST(Int8Products, OfInputsOf127StepsAreThoseOfTheIntegers) {
  for (const auto* cases : {&products, &filtered_products, &unfiltered_products})
    expect_products_of_integers(*cases, {{0.7F, false, 127}, {0, false, 127}, {0.7F, true, 127}});
}

TEST(MinimalFiltering, IsTakenWhereItsFactorsFitBytes) {
  const auto filters = [](const Product& p, const InputRange& range) {
    CpuBackend backend(1);
    const auto weight = backend.make_weight(quantized(p.w, parse_scheme(p.scheme), 3), Precision::int8, range);
    const bool shares = weight->product_share(p.window.stride) < 1.0;
    EXPECT_EQ(backend.route(*weight, {.x = p.x, .window = p.window})->kernel.ends_with(", filtered"), shares);
    return shares;
  };
  for (const Product& p : filtered_products) {
    EXPECT_TRUE(filters(p, {0.7F, false, 127})) << p.scheme;
    EXPECT_FALSE(filters(p, {0.7F, false, 255})) << p.scheme;
    EXPECT_FALSE(filters(p, {0.7F, true, 127})) << p.scheme;
  }
  for (const Product& p : unfiltered_products) EXPECT_FALSE(filters(p, {0.7F, false, 127})) << p.scheme;
}

/// Values and inputs as large as they may be, of one sign and of both.
TEST(MinimalFiltering, HoldsTheLargestFactors) {
  for (const int64_t side : {3, 5})
    for (const bool alternating : {false, true}) {
      const Shape shape{16, 64, side, side};
      Values w(shape);
      for (int64_t i = 0; i < shape.elements(); ++i)
        w.data[static_cast<size_t>(i)] = i % 7 == 0 ? 0.01F : alternating && i % side % 2 == 1 ? -42.0F : 42.0F;
      const PackedTensor packed = quantize(w.view(), parse_scheme("kmeans:2:tensor"), "w");
      const Product p = {"kmeans:2:tensor", {1, side, 8, 64}, shape, {side, 1, side / 2}};
      for (const int period : {1, 2, 3}) {
        Values x(p.x);
        for (int64_t i = 0; i < p.x.elements(); ++i)
          x.data[static_cast<size_t>(i)] = i / 64 % period == 0 ? 1.0F : 0.0F;
        const InputRange range{1.0F, false, 127};
        const Values bias(Shape{16});
        const Values expected = in_integers(p, x, packed, bias, range, Epilogue::none);
        for (const InstructionSet set : sets_here()) {
          CpuBackend backend(1);
          backend.limit(set);
          const auto weight = backend.make_weight(packed, Precision::int8, range);
          ASSERT_LT(weight->product_share(1), 1.0);
          EXPECT_TRUE(same_bits(run(backend, p, x, *weight, bias, Epilogue::none), expected)) << to_string(set);
        }
      }
    }
}

/// bfloat16's products as float32 ones of rounded values; sums may differ by their rounding.
TEST(Bfloat16Products, AreThoseOfRoundedValues) {
  const auto rounded = [](Values values) {
    for (float& value : values.data) value = std::bit_cast<float>(static_cast<uint32_t>(bfloat16_of(value)) << 16);
    return values;
  };
  for (const Product& p : products) {
    const PackedTensor packed = quantized(p.w, parse_scheme(p.scheme), 3);
    const Values bias = uniform({p.w[0]}, 2), x = inputs_of(p, true);
    for (const InstructionSet set : sets_here()) {
      SCOPED_TRACE(fmt::format("{} of {}, {}", p.scheme, to_string(p.w), to_string(set)));
      CpuBackend backend(2);
      backend.limit(set);
      const auto weight = backend.make_weight(packed, Precision::bfloat16);
      ASSERT_EQ(weight->product_precision(), Precision::bfloat16);
      Values exact = dequantized(packed);  // values are rounded before they are multiplied by their step
      const Codebook codebook = codebook_of(packed);
      const PackedView view = view_of(packed, codebook);
      const int64_t elements = view.channel_elements;
      const bool kept = byte_values(view).error < 1e-6;  // multiples of a unit are whole numbers
      for (int64_t i = 0; i < exact.shape.elements() && !kept; ++i) {
        const float step = view.step(view.groups.group(i / elements, 0));
        float& value = exact.data[static_cast<size_t>(i)];
        if (step != 0) value = rounded(Values({1}, value / step)).data[0] * step;
      }
      const auto plain = backend.make_weight(exact.view());
      const Values expected = run(backend, p, rounded(x), *plain, bias, Epilogue::relu);
      EXPECT_LE(relative_error(run(backend, p, x, *weight, bias, Epilogue::relu).view(), expected.view()), 2e-6);
    }
  }
}

TEST(Bfloat16Products, TakeFloatWeightsInHalfTheBytes) {
  for (const Product& p : products) {
    CpuBackend backend(2);
    const Values w = uniform(p.w, 3), bias = uniform({p.w[0]}, 2), x = inputs_of(p, true);
    const auto weight = backend.make_weight(w.view(), Precision::bfloat16);
    const auto plain = backend.make_weight(w.view());
    EXPECT_EQ(weight->product_precision(), Precision::bfloat16);
    EXPECT_EQ(weight->resident().total(),
              static_cast<int64_t>(backend.meter().live_total()) - plain->resident().total());
    EXPECT_LE(relative_error(run(backend, p, x, *weight, bias, Epilogue::none).view(),
                             run(backend, p, x, *plain, bias, Epilogue::none).view()),
              0.01);
  }
}

TEST(NarrowProducts, GiveTheSameBitsForEveryNumberOfThreads) {
  for (const Precision precision : {Precision::int8, Precision::bfloat16})
    for (const Product& p : products) {
      const PackedTensor packed = quantized(p.w, parse_scheme(p.scheme), 3);
      const Values bias = uniform({p.w[0]}, 2), x = inputs_of(p, false);
      Values expected;
      for (const int threads : {1, 2, 3, 5}) {
        CpuBackend backend(threads);
        const auto weight = backend.make_weight(packed, precision, {0, false});
        const Values y = run(backend, p, x, *weight, bias, Epilogue::none);
        if (threads == 1) expected = y;
        EXPECT_TRUE(same_bits(y, expected)) << to_string(precision) << " " << p.scheme << ", " << threads;
      }
    }
}

TEST(Int8Products, OfAnImageDoNotDependOnItsNeighbours) {
  for (const Product& p : products) {
    CpuBackend backend(2);
    const auto weight = backend.make_weight(quantized(p.w, parse_scheme(p.scheme), 3), Precision::int8, {0, true});
    const Values bias = uniform({p.w[0]}, 2);
    Values x = inputs_of(p, true);
    const size_t image = x.data.size() / static_cast<size_t>(p.x[0]);
    const Values alone = run(backend, p, x, *weight, bias, Epilogue::none);
    for (size_t i = image; i < x.data.size(); ++i) x.data[i] *= 100.0F;
    const Values beside = run(backend, p, x, *weight, bias, Epilogue::none);
    const size_t outputs = alone.data.size() / static_cast<size_t>(p.x[0]);
    EXPECT_TRUE(
        std::equal(alone.data.begin(), alone.data.begin() + static_cast<std::ptrdiff_t>(outputs), beside.data.begin()))
        << p.scheme;
  }
}

TEST(NarrowProducts, OfNumbersThatAreNotFiniteAreNoNumbers) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const Precision precision : {Precision::int8, Precision::bfloat16})
    for (const InstructionSet set : sets_here())
      for (const float largest : {0.0F, 1.0F})
        for (const float value : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
          CpuBackend backend(2);
          backend.limit(set);
          const Product p = {"linear:4:channel", {2, 300}, {3, 300}};
          const auto weight =
              backend.make_weight(quantized(p.w, parse_scheme(p.scheme), 3), precision, {largest, true});
          Values x = uniform(p.x, 1);
          x.data[307] = value;
          const Values y = linear(backend, x, *weight, Values({3}));
          for (size_t k = 0; k < 3; ++k) {
            EXPECT_TRUE(std::isfinite(y.data[k])) << to_string(set);
            EXPECT_FALSE(std::isfinite(y.data[3 + k])) << to_string(set) << " " << to_string(precision) << " " << value;
          }
        }
}

/// A window row of three colours ends within a group of four bytes.
TEST(Bfloat16Products, OfWindowsBesideANaNAreNumbers) {
  for (const InstructionSet set : sets_here()) {
    CpuBackend backend(2);
    backend.limit(set);
    const auto weight =
        backend.make_weight(quantized({4, 3, 3, 3}, parse_scheme("linear:4:channel"), 3), Precision::bfloat16);
    Values x = uniform({2, 5, 7, 3}, 1);
    const int64_t row = 2, column = 3;
    x.data[static_cast<size_t>((row * 7 + column) * 3)] = std::numeric_limits<float>::quiet_NaN();
    const Values y = conv2d(backend, x, *weight, Values({4}), {3, 1, 0}, Epilogue::none);
    for (int64_t i = 0; i < y.shape.elements(); ++i) {
      const int64_t n = i / 60, p = i / 20 % 3, q = i / 4 % 5;
      const bool sees = n == 0 && p <= row && row < p + 3 && q <= column && column < q + 3;
      EXPECT_EQ(std::isnan(y.data[static_cast<size_t>(i)]), sees) << to_string(set) << ", output " << i;
    }
  }
}

/// Activations as bytes.
struct Bytes {
  Shape shape;
  ByteScale scale;
  std::vector<uint8_t> data;
  std::vector<uint8_t> invalid;

  Bytes(const Shape& sizes, const ByteScale& their_scale)
      : shape(sizes),
        scale(their_scale),
        data(static_cast<size_t>(sizes.elements())),
        invalid(static_cast<size_t>(sizes[0]), uint8_t{7}) {}  // a product has to set them all
  Activations view() { return {data.data(), shape, {scale, invalid.data()}}; }
};

/// Floats as the next product would round them.
std::vector<uint8_t> as_bytes(const Values& values, const ByteScale& scale) {
  std::vector<uint8_t> bytes;
  const auto most = static_cast<float>(scale.most);
  for (const float value : values.data)
    bytes.push_back(static_cast<uint8_t>(std::lrint(std::clamp(value * (1.0F / scale.step), 0.0F, most))));
  return bytes;
}

void run(CpuBackend& backend, const Product& p, Activations y, ConstActivations x, Weight& w, const Values& bias) {
  if (p.is_linear())
    backend.linear_forward(y, x, w, bias.view(), Epilogue::relu);
  else
    backend.conv2d_forward(y, x, w, bias.view(), p.window, Epilogue::relu);
}

TEST(NarrowProducts, WriteTheBytesThatTheNextProductRounds) {
  for (const Precision precision : {Precision::int8, Precision::bfloat16})
    for (const Product& p : products)
      for (const InstructionSet set : sets_here()) {
        const ByteScale scale{0.011F, p.x[0] % 2 == 0 ? 127 : 255};
        CpuBackend backend(2);
        backend.limit(set);
        const auto weight = backend.make_weight(quantized(p.w, parse_scheme(p.scheme), 3), precision, {0, true});
        ASSERT_TRUE(weight->writes_bytes());
        const Values bias = uniform({p.w[0]}, 2), x = inputs_of(p, true);
        const Values floats = run(backend, p, x, *weight, bias, Epilogue::relu);
        Bytes y(floats.shape, scale);
        run(backend, p, y.view(), x.view(), *weight, bias);
        EXPECT_EQ(y.data, as_bytes(floats, scale)) << p.scheme << ", " << to_string(set);
        EXPECT_EQ(y.invalid, std::vector<uint8_t>(y.invalid.size(), 0));
      }
}

TEST(Int8Products, OfBytesAreThoseOfTheNumbersTheyStandFor) {
  for (const auto& [cases, steps] : {std::pair{&products, 255}, std::pair{&filtered_products, 127}})
    for (const Product& p : *cases)
      for (const InstructionSet set : sets_here()) {
        CpuBackend backend(2);
        backend.limit(set);
        const auto weight =
            backend.make_weight(quantized(p.w, parse_scheme(p.scheme), 3), Precision::int8, {0.7F, false, steps});
        ASSERT_EQ(weight->byte_scale(), (ByteScale{0.7F / static_cast<float>(steps), steps}));
        Bytes x(p.x, *weight->byte_scale());
        x.invalid.assign(x.invalid.size(), 0);
        Random random(4);
        Values floats(p.x);
        for (size_t i = 0; i < x.data.size(); ++i) {
          x.data[i] = static_cast<uint8_t>(random.below(static_cast<uint64_t>(steps) + 1));
          floats.data[i] = static_cast<float>(x.data[i]) * x.scale.step;
        }
        const Values bias = uniform({p.w[0]}, 2);
        const Values expected = run(backend, p, floats, *weight, bias, Epilogue::relu);
        Values y(expected.shape);
        run(backend, p, y.view(), x.view(), *weight, bias);
        EXPECT_TRUE(same_bits(y, expected)) << p.scheme << ", " << to_string(set);
      }
}

TEST(Int8Products, Of127StepsRefuseBytesOf255) {
  CpuBackend backend(2);
  const Product p = {"linear:4:channel", {1, 40}, {5, 40}};
  const auto weight = backend.make_weight(quantized(p.w, parse_scheme(p.scheme), 3), Precision::int8, {1, false, 127});
  Bytes x(p.x, {1.0F / 127.0F, 255});
  Values y(Shape{1, 5});
  EXPECT_THROW(run(backend, p, y.view(), x.view(), *weight, Values(Shape{5})), Error);
}

TEST(Int8Products, KeepInBytesWhichImagesAreInvalid) {
  const Product p = {"linear:4:channel", {3, 40}, {40, 40}};
  for (const InstructionSet set : sets_here())
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      CpuBackend backend(2);
      backend.limit(set);
      const auto weight = backend.make_weight(quantized(p.w, parse_scheme(p.scheme), 3), Precision::int8, {1, false});
      Values x = inputs_of(p, false);
      x.data[47] = value;
      Bytes between(Shape{3, 40}, *weight->byte_scale());
      run(backend, p, between.view(), x.view(), *weight, Values(Shape{40}));
      EXPECT_EQ(between.invalid, (std::vector<uint8_t>{0, 1, 0})) << to_string(set);
      Values y(Shape{3, 40});
      run(backend, p, y.view(), between.view(), *weight, Values(Shape{40}));
      for (size_t i = 0; i < y.data.size(); ++i) EXPECT_EQ(std::isnan(y.data[i]), i / 40 == 1) << to_string(set);
    }
}

TEST(Int8Products, RefuseBytesWhereTheyExpectFloats) {
  CpuBackend backend(2);
  const Product p = {"linear:4:channel", {1, 40}, {5, 40}};
  const PackedTensor packed = quantized(p.w, parse_scheme(p.scheme), 3);
  Bytes x(p.x, {0.1F});
  Values y(Shape{1, 5});
  for (const InputRange range : {InputRange{0, false}, InputRange{1, true}}) {
    const auto weight = backend.make_weight(packed, Precision::int8, range);
    EXPECT_FALSE(weight->byte_scale());
    EXPECT_THROW(run(backend, p, y.view(), x.view(), *weight, Values(Shape{5})), Error);
  }
  const auto floats = backend.make_weight(packed);
  EXPECT_FALSE(floats->byte_scale());
  EXPECT_FALSE(floats->writes_bytes());
  EXPECT_THROW(run(backend, p, y.view(), x.view(), *floats, Values(Shape{5})), Error);
}

TEST(Bytes, ArePooledAndFlattenedLikeTheNumbersTheyStandFor) {
  CpuBackend backend(2);
  for (const Window window : {Window{3, 2, 0}, Window{3, 2, 1}, Window{2, 1, 1}, Window{5, 3, 2}})
    for (const int64_t channels : {3, 16, 67}) {
      const Shape shape{2, 9, 11, channels};
      Bytes x(shape, {1.0F});
      x.invalid = {0, 1};
      Values floats(shape);
      Random random(4);
      for (size_t i = 0; i < x.data.size(); ++i)
        floats.data[i] = static_cast<float>(x.data[i] = static_cast<uint8_t>(random.below(256)));
      Values pooled(Shape{2, window.output(9), window.output(11), channels});
      backend.max_pool2d_forward(pooled.view(), {}, floats.view(), window);
      Bytes y(pooled.shape, {1.0F});
      backend.max_pool2d_forward(y.view(), {}, x.view(), window);
      EXPECT_EQ(y.data, as_bytes(pooled, {1.0F}));
      EXPECT_EQ(y.invalid, x.invalid);
      Values flat(Shape{2, pooled.shape.inner_elements()});
      backend.flatten_forward(flat.view(), pooled.view());
      Bytes z(flat.shape, {1.0F});
      backend.flatten_forward(z.view(), y.view());
      EXPECT_EQ(z.data, as_bytes(flat, {1.0F}));
      EXPECT_EQ(z.invalid, x.invalid);
      for (const ByteScale& scale : {ByteScale{2.0F}, ByteScale{1.0F, 127}}) {
        Bytes other(pooled.shape, scale);
        EXPECT_THROW(backend.max_pool2d_forward(other.view(), {}, x.view(), window), Error);
      }
    }
}

TEST(Int8Products, SaturateInputsBeyondTheRange) {
  for (const InstructionSet set : sets_here()) {
    CpuBackend backend(2);
    backend.limit(set);
    const Product p = {"linear:4:channel", {1, 40}, {5, 40}};
    const auto weight = backend.make_weight(quantized(p.w, parse_scheme(p.scheme), 3), Precision::int8, {1, false});
    const Values bias(Shape{5});
    const Values largest = linear(backend, Values(p.x, 1.0F), *weight, bias);
    for (const float value : {1.5F, 1e9F, 3e38F})
      EXPECT_TRUE(same_bits(linear(backend, Values(p.x, value), *weight, bias), largest)) << to_string(set);
    EXPECT_TRUE(same_bits(linear(backend, Values(p.x, -1e9F), *weight, bias), Values(Shape{1, 5}))) << to_string(set);
  }
}

/// Processors with AVX-512 unpack codes in two ways; this one may know both.
TEST(NarrowKernels, UnpackTheSameWithAndWithoutBytePermutations) {
  if (!has_vbmi()) GTEST_SKIP() << "this processor does not permute bytes";
  constexpr int64_t width = 48;
  Random random(6);
  ValueTable table;
  for (size_t i = 0; i < 256; ++i) {
    table.bytes[i] = static_cast<int8_t>(static_cast<int>(random.below(256)) - 128);
    table.bfloats[i] = static_cast<uint16_t>(random.below(65536));
  }
  std::vector<uint8_t> zeros;
  for (int64_t i = 0; i < width; ++i) zeros.push_back(static_cast<uint8_t>(random.below(4)));
  for (const Precision precision : {Precision::int8, Precision::bfloat16})
    for (const InstructionSet set : sets_here())
      for (int bits = 2; bits <= 8; ++bits)
        for (const bool with_zeros : {false, true}) {
          const int64_t count = 8 * width;
          std::vector<uint8_t> codes(static_cast<size_t>(packed_bytes(count, bits)) + 64);
          for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.below(256));
          const auto unpacked = [&](bool vbmi) {
            const NarrowKernels& kernels = narrow_kernels(precision, set, vbmi);
            std::vector<std::byte> out(static_cast<size_t>(count * kernels.value_bytes()));
            kernels.unpack({.codes = codes.data(),
                            .count = count,
                            .bits = bits,
                            .values = &table,
                            .zero_points = with_zeros ? zeros.data() : nullptr,
                            .width = width,
                            .out = out.data()});
            return out;
          };
          EXPECT_EQ(unpacked(true), unpacked(false)) << to_string(set) << ", " << bits << " bits";
        }
}

TEST(NarrowWeight, ResidentBytesAreTheMeteredOnes) {
  for (const Precision precision : {Precision::int8, Precision::bfloat16})
    for (const Product& p : products) {
      CpuBackend backend(2);
      const auto weight =
          backend.make_weight(quantized(p.w, parse_scheme(p.scheme), 3), precision, {0, !p.is_linear()});
      const ResidentSize size = weight->resident();
      const MemoryMeter& meter = backend.meter();
      EXPECT_EQ(static_cast<int64_t>(meter.live_total()), size.total()) << p.scheme;
      EXPECT_EQ(static_cast<int64_t>(meter.live(MemoryCategory::codes)), size.codes + size.padding);
      EXPECT_EQ(static_cast<int64_t>(meter.live(MemoryCategory::scales)), size.scales);
      EXPECT_EQ(static_cast<int64_t>(meter.live(MemoryCategory::zero_points)), size.zero_points);
      EXPECT_EQ(static_cast<int64_t>(meter.live(MemoryCategory::codebooks)), size.codebooks);
      EXPECT_THROW(weight->values(), Error);
    }
}

TEST(NarrowWeight, IsFloatWhereScalesChangeAlongAChannel) {
  CpuBackend backend(2);
  for (const std::string scheme : {"nf4:4:block:16:f16", "linear:4:tile:3x5", "stable-embedding", "trellis:2"}) {
    const auto packed = quantized({128, 64}, parse_scheme(scheme), 3);
    EXPECT_EQ(backend.make_weight(packed, Precision::int8)->product_precision().value_or(Precision::float32),
              Precision::float32)
        << scheme;
  }
}

TEST(NarrowWeight, TakesBfloat16WhereBytesDoNotHoldItsValues) {
  CpuBackend backend(2);
  const auto packed = quantized({16, 64}, parse_scheme("linear:8:channel:zero-point"), 3);
  const bool has_bf16 = best_instruction_set() >= InstructionSet::avx512_bf16;
  EXPECT_EQ(backend.make_weight(packed, Precision::int8)->product_precision().value_or(Precision::float32),
            has_bf16 ? Precision::bfloat16 : Precision::float32);
}

TEST(InstructionSetNames, AreRead) {
  for (const InstructionSet set : sets_here()) EXPECT_EQ(parse_instruction_set(to_string(set)), set);
  EXPECT_THROW(parse_instruction_set("sse9"), UsageError);
}

TEST(Bfloat16, RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(bfloat16_of(1.0F), 0x3F80);
  EXPECT_EQ(bfloat16_of(std::bit_cast<float>(0x3F808000U)), 0x3F80);  // a tie, to even
  EXPECT_EQ(bfloat16_of(std::bit_cast<float>(0x3F818000U)), 0x3F82);
  EXPECT_EQ(bfloat16_of(std::bit_cast<float>(0x3F808001U)), 0x3F81);
  EXPECT_EQ(bfloat16_of(-0.0F), 0x8000);
  EXPECT_EQ(bfloat16_of(1e-40F), 0);  // a denormal
  EXPECT_EQ(bfloat16_of(std::numeric_limits<float>::infinity()), 0x7F80);
  EXPECT_EQ(bfloat16_of(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_TRUE(
      std::isnan(std::bit_cast<float>(static_cast<uint32_t>(bfloat16_of(std::bit_cast<float>(0x7F800001U))) << 16)));
}

}  // namespace
}  // namespace nibblenet
