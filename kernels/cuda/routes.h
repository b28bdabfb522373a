#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "kernels/cuda/gemm/product_case.h"
#include "kernels/forward_route.h"

// The table of routes: which kernel computes which product. Pure functions of shapes, schemes and
// GPU: no stream, no pointer, no launch. Whether a kernel can compute a product stands beside the
// kernel (fits()); whether it shall, here.

namespace nibblenet {

/// Kernels of products, by their files in conv/, linear/ and gemm/; a gradient's is named as the
/// forward product's.
enum class Product : uint8_t { few_pixels, few_rows, wgmma, mma, few_channels, few_outputs, plain };
inline constexpr size_t product_count = 7;
std::string_view to_string(Product product);

/// Which of the kernels may be chosen.
struct KernelChoice {
  enum class Mode : uint8_t {
    fast,      ///< all of them, where they pay
    portable,  ///< those that all GPUs have
    plain,     ///< the readable reference alone
    wgmma      ///< wgmma wherever it fits and few_pixels nowhere: for tests
  };
  Mode mode = Mode::fast;
  uint32_t left_out = 0;  ///< bit i: the product with number i

  constexpr KernelChoice without(Product product) const {
    return {mode, left_out | 1U << static_cast<unsigned>(product)};
  }
};
/// "fast", "portable" or "plain", then "-ROW" for each kernel to leave out: "fast,-few_pixels".
/// Empty: fast. Throws UsageError with the list of rows.
KernelChoice parse_kernels(std::string_view text);

/// What routes depend on besides the product.
struct GpuTraits {
  bool has_wgmma = false;  ///< the GPU, and the code that was compiled for it
  KernelChoice choice = {};

  /// Whether the GPU has the kernel and the choice does not leave it out.
  bool may_use(Product product) const;
};
/// "sm_80", "sm_89" or "sm_90". Throws UsageError.
GpuTraits parse_gpu(std::string_view text);

/// A kernel that expands weights to fp16 values in the workspace, for one that cannot read them
/// where they lie.
enum class Expansion : uint8_t { none, weight_rows, superblock_rows, weight_superblocks };
/// Empty for none.
std::string_view to_string(Expansion expansion);

/// The kernels of a forward product.
struct Route {
  Product product = Product::plain;
  Expansion expansion = Expansion::none;
  bool pools = false;     ///< max pooling in the same kernel
  bool flattens = false;  ///< and PyTorch's flatten

  bool expands_weights() const { return expansion != Expansion::none; }
};
/// Of a product without pooling.
Route route_forward(const ProductCase& c, const GpuTraits& gpu);
/// Of one with its pooling; nothing where pooling is better a kernel of its own.
std::optional<Route> route_pooled(const ProductCase& c, const GpuTraits& gpu);

/// The kernel of a gradient.
struct GradientRoute {
  Product product = Product::plain;

  /// Whether it can also do what follows: GradientStore's epilogue of dx, or the step of SGD with
  /// dw.
  bool fuses() const { return product != Product::plain; }
};
GradientRoute route_data_gradient(const ProductCase& c, const GpuTraits& gpu);
GradientRoute route_weight_gradient(const ProductCase& c, const GpuTraits& gpu);

/// The route that answers Inference's question about a weight of this shape.
std::optional<ForwardRoute> route_of(const ForwardQuestion& question, const Shape& w, const WeightTraits& weight,
                                     const GpuTraits& gpu);

}  // namespace nibblenet
