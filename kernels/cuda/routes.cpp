#include "kernels/cuda/routes.h"

#include <array>

#include "kernels/cuda/conv/few_channels_fit.h"
#include "kernels/cuda/conv/few_pixels_fit.h"
#include "kernels/cuda/gemm/mma_fit.h"
#include "kernels/cuda/gemm/wgmma_fit.h"
#include "kernels/cuda/linear/few_outputs_fit.h"
#include "kernels/cuda/linear/few_rows_fit.h"

namespace nibblenet {
namespace {

using Mode = KernelChoice::Mode;

constexpr std::array<std::string_view, product_count> names = {"few_pixels", "few_rows",     "wgmma_unpacked", "wgmma",
                                                               "mma",        "few_channels", "few_outputs",    "plain"};

/// At most two few_pixels tiles per multiprocessor: with more, large tiles fill the GPU as well.
bool has_few_pixels(const ProductCase& c, const GpuTraits& gpu) {
  return gpu.choice.mode != Mode::wgmma && few_pixels::fits(c) &&
         FewPixelsBlocks(c.sizes).count() <= 2 * nominal_multiprocessors;
}

/// Tiles that hold whole windows are more, since they overlap.
bool few_pixels_pools(const ProductCase& c) {
  return FewPixelsBlocks(c.sizes, few_pixels::pooled_tiles(c)).count() <= 2 * nominal_multiprocessors;
}

/// wgmma expands weights first, or unpacks them for 128 rows of x. For a linear layer that takes
/// longer than the product, unless there are many rows.
bool wgmma_pays(const ProductCase& c, const GpuTraits& gpu) {
  return gpu.choice.mode == Mode::wgmma || c.sizes.size != 1 || c.sizes.p * c.sizes.q != 1 || c.sizes.n >= 48;
}

/// A row of the table: a kernel, and whether it can compute a product that no earlier row took, and
/// pays.
struct Row {
  Product product;
  bool (*fits)(const ProductCase& c);
  bool (*pays)(const ProductCase& c, const GpuTraits& gpu) = [](const ProductCase&, const GpuTraits&) { return true; };
};

// Best kernel first: a product takes the first row that fits.
constexpr Row forward_rows[] = {
    {Product::few_pixels, few_pixels::fits, has_few_pixels},
    {Product::few_rows, few_rows::fits},
    {Product::wgmma_unpacked, wgmma::fits_unpacked, wgmma_pays},
    {Product::wgmma, wgmma::fits, wgmma_pays},
    {Product::mma, mma::fits},
    {Product::wgmma, wgmma::fits},
    {Product::few_channels, few_channels::fits},
    {Product::few_outputs, few_outputs::fits},
};
constexpr Row data_gradient_rows[] = {
    {Product::wgmma, wgmma::fits_data_gradient},
    {Product::mma, mma::fits_data_gradient},
    {Product::few_outputs, few_outputs::fits_gradients},
};
constexpr Row weight_gradient_rows[] = {
    {Product::wgmma, wgmma::fits_weight_gradient},
    {Product::few_channels, few_channels::fits_weight_gradient,
     [](const ProductCase& c, const GpuTraits&) { return c.sizes.c % 8 != 0; }},
    {Product::mma, mma::fits_weight_gradient},
    {Product::few_outputs, few_outputs::fits_gradients},
};

template <size_t count>
Product first_of(const Row (&rows)[count], const ProductCase& c, const GpuTraits& gpu) {
  for (const Row& row : rows)
    if (gpu.may_use(row.product) && row.fits(c) && row.pays(c, gpu)) return row.product;
  return Product::plain;
}

Expansion expansion_for(Product product, const ProductCase& c) {
  const WeightTraits& weight = c.weight;
  if (product == Product::few_pixels && !few_pixels::multiplies_in_place(weight)) return Expansion::weight_superblocks;
  if (product != Product::wgmma || weight.trains) return Expansion::none;
  if (weight.layout == WeightLayout::strings) return Expansion::string_rows;
  return weight.layout == WeightLayout::superblocks ? Expansion::superblock_rows : Expansion::weight_rows;
}

}  // namespace

std::string_view to_string(Product product) { return names[static_cast<size_t>(product)]; }

std::string_view to_string(Expansion expansion) {
  constexpr std::array<std::string_view, 5> expansions = {"", "weight_rows", "superblock_rows", "weight_superblocks",
                                                          "string_rows"};
  return expansions[static_cast<size_t>(expansion)];
}

KernelChoice parse_kernels(std::string_view text) {
  KernelChoice choice;
  for (bool first = true; first || !text.empty(); first = false) {
    const size_t comma = std::min(text.find(','), text.size());
    const std::string_view part = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    if (first) {
      if (part == "portable") choice.mode = Mode::portable;
      if (part == "plain") choice.mode = Mode::plain;
      if (part.empty() || part == "fast" || choice.mode != Mode::fast) continue;
    } else if (part == "-pdl") {
      choice.pdl = false;
      continue;
    } else if (part == "-clusters") {
      choice.clusters = false;
      continue;
    } else if (part.starts_with('-') && part != "-plain") {
      const auto found = std::ranges::find(names, part.substr(1));
      if (found != names.end()) {
        choice = choice.without(static_cast<Product>(found - names.begin()));
        continue;
      }
    }
    fail<UsageError>(
        "NIBBLENET_KERNELS: {} is unknown; it is fast, portable or plain, and then -ROW for kernels to leave out: {}; "
        "or -pdl, or -clusters",
        part, fmt::join(names.begin(), names.end() - 1, ", "));
  }
  return choice;
}

bool GpuTraits::may_use(Product product) const {
  if (product == Product::plain) return true;
  if (choice.mode == Mode::plain || (choice.left_out >> static_cast<unsigned>(product) & 1U) != 0) return false;
  const bool is_wgmma = product == Product::wgmma_unpacked || product == Product::wgmma;
  return !is_wgmma || (has_wgmma && choice.mode != Mode::portable);
}

GpuTraits parse_gpu(std::string_view text) {
  if (text == "sm_80" || text == "sm_89" || text == "sm_90") return {.has_wgmma = text == "sm_90"};
  fail<UsageError>("--gpu {}: known are sm_80, sm_89 and sm_90", text);
}

Route route_forward(const ProductCase& c, const GpuTraits& gpu) {
  const Product product = first_of(forward_rows, c, gpu);
  return {.product = product, .expansion = expansion_for(product, c)};
}

std::optional<Route> route_pooled(const ProductCase& c, const GpuTraits& gpu) {
  const auto route = [&](Product product) { return Route{product, expansion_for(product, c), true, c.pool.flat}; };
  // few_pixels is faster than the fused kernels of the others, even where it does not pool.
  if (gpu.may_use(Product::few_pixels) && has_few_pixels(c, gpu)) {
    if (few_pixels::fits_pooling(c) && few_pixels_pools(c)) return route(Product::few_pixels);
    return std::nullopt;
  }
  const bool by_wgmma = gpu.may_use(Product::wgmma) && wgmma_pays(c, gpu);
  if (gpu.may_use(Product::mma) && !by_wgmma && mma::fits(c)) return route(Product::mma);
  if (gpu.may_use(Product::few_channels) && few_channels::fits(c)) return route(Product::few_channels);
  return std::nullopt;
}

GradientRoute route_data_gradient(const ProductCase& c, const GpuTraits& gpu) {
  return {first_of(data_gradient_rows, c, gpu)};
}

GradientRoute route_weight_gradient(const ProductCase& c, const GpuTraits& gpu) {
  return {first_of(weight_gradient_rows, c, gpu)};
}

std::optional<ForwardRoute> route_of(const ForwardQuestion& question, const Shape& w, const WeightTraits& weight,
                                     const GpuTraits& gpu) {
  ProductCase c = product_case(question.x, product_shape(question.x, w, question.window), question.window, weight);
  c.x = question.precision;
  c.y = question.y;
  if (!question.aligned) c.x_alignment = c.y_alignment = static_cast<int>(sizeof(f16));
  c.pool = {question.pool, question.flat};
  const std::optional<Route> route = c.pools() ? route_pooled(c, gpu) : route_forward(c, gpu);
  if (!route) return std::nullopt;
  return ForwardRoute{.kernel = std::string(to_string(route->product)),
                      .expansion = std::string(to_string(route->expansion)),
                      .pools = route->pools,
                      .flattens = route->flattens};
}

}  // namespace nibblenet
