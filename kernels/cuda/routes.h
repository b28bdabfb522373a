#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "kernels/cuda/gemm/product_case.h"
#include "kernels/forward_route.h"

// The table of routes: which kernel computes which product. Pure functions of shapes, schemes and
// GPU: they launch nothing. fits() beside each kernel says whether it can compute a product; the
// table says whether it shall.

namespace nibblenet {

/// Product kernels, named after their files in conv/, linear/ and gemm/. A gradient's kernel has
/// the name of the forward product's.
enum class Product : uint8_t { few_pixels, few_rows, wgmma_unpacked, wgmma, mma, few_channels, few_outputs, plain };
inline constexpr size_t product_count = 8;
std::string_view to_string(Product product);

/// The kernels that routes may choose.
struct KernelChoice {
  enum class Mode : uint8_t {
    fast,      ///< all of them, where they pay
    portable,  ///< those that all GPUs have
    plain,     ///< the readable reference alone
    wgmma      ///< wgmma wherever it fits and few_pixels nowhere: for tests
  };
  Mode mode = Mode::fast;
  uint32_t left_out = 0;  ///< bit i: the product with number i
  bool pdl = true;        ///< whether kernels may begin before the one in front has ended
  bool clusters = true;   ///< whether split-K parts may form thread block clusters

  /// This choice, with one kernel less.
  constexpr KernelChoice without(Product product) const {
    KernelChoice choice = *this;
    choice.left_out |= 1U << static_cast<unsigned>(product);
    return choice;
  }
};
/// Parses "fast", "portable" or "plain", followed by "-ROW" for each kernel to leave out, or by
/// "-pdl" or "-clusters", as in "fast,-few_pixels". Empty means fast. Throws UsageError with the
/// list of rows.
KernelChoice parse_kernels(std::string_view text);

/// Properties of the GPU that routes depend on.
struct GpuTraits {
  bool has_wgmma = false;  ///< the GPU, and the code that was compiled for it
  KernelChoice choice = {};

  /// Whether the GPU has the kernel and the choice does not leave it out.
  bool may_use(Product product) const;
};
/// Traits of "sm_80", "sm_89" or "sm_90". Throws UsageError for others.
GpuTraits parse_gpu(std::string_view text);

/// A kernel that first expands weights to fp16 values in the workspace, for a product kernel that
/// cannot read them in place.
enum class Expansion : uint8_t { none, weight_rows, superblock_rows, weight_superblocks, string_rows };
/// The kernel's name; empty for none.
std::string_view to_string(Expansion expansion);

/// The kernels of a forward product.
struct Route {
  Product product = Product::plain;
  Expansion expansion = Expansion::none;
  bool pools = false;     ///< max pooling in the same kernel
  bool flattens = false;  ///< and PyTorch's flatten

  bool expands_weights() const { return expansion != Expansion::none; }
};
/// Route of a forward product without pooling.
Route route_forward(const ProductCase& c, const GpuTraits& gpu);
/// Route of a forward product with fused pooling. Returns nothing where a separate pooling kernel
/// is better.
std::optional<Route> route_pooled(const ProductCase& c, const GpuTraits& gpu);

/// The kernel of a gradient.
struct GradientRoute {
  Product product = Product::plain;

  /// Whether it can also do what follows: GradientStore's epilogue of dx, or the step of SGD with
  /// dw.
  bool fuses() const { return product != Product::plain; }
};
/// Routes of dx, and of dw, stored or applied at once.
GradientRoute route_data_gradient(const ProductCase& c, const GpuTraits& gpu);
GradientRoute route_weight_gradient(const ProductCase& c, const GpuTraits& gpu);

/// Answers Inference::route() for a weight of this shape.
std::optional<ForwardRoute> route_of(const ForwardQuestion& question, const Shape& w, const WeightTraits& weight,
                                     const GpuTraits& gpu);

}  // namespace nibblenet
