#include "engine/io/augmentation.h"
#include "kernels/cuda/activations/launchers.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/gemm/dispatch.cuh"

namespace nibblenet {
namespace {

/// ResampleAxis in device memory.
struct AxisView {
  int taps;
  const int32_t* first;
  const int32_t* count;
  const int32_t* weights;
};

/// Resize, crop and normalisation: x[n, i, j, c] = normalized[c][byte]. `byte` is the result of
/// PIL's resize (Pillow, Resample.c): rows first, rounded to bytes, then columns of those bytes.
/// All of it is integer arithmetic, with the host's bits. Pixels outside a shifted image are black
/// and add nothing. One thread per pixel; when enlarging, it reads 2 x 2 source pixels.
template <class T>
__global__ void prepare_images_kernel(T* x, const uint8_t* images, const Augmentation* augmentations,
                                      AxisView horizontal, AxisView vertical, const float* normalized, int width,
                                      int height, int crop, int64_t pixels) {
  constexpr int32_t half_step = 1 << (resample_precision - 1);
  for_each_index(pixels, [&](int64_t pixel) {
    const int64_t n = pixel / crop / crop;
    const auto i = static_cast<int>(pixel / crop % crop);
    const auto at = static_cast<int>(pixel % crop);
    const Augmentation change = augmentations[n];
    const int j = change.mirrored != 0 ? crop - 1 - at : at;
    const int left = horizontal.first[j] - change.right;
    const uint8_t* image = images + n * height * width * 3;
    int32_t sum[3] = {half_step, half_step, half_step};
    for (int v = 0; v < vertical.count[i]; ++v) {
      const int down = vertical.first[i] + v - change.down;
      if (down < 0 || down >= height) continue;
      const uint8_t* row = image + (static_cast<int64_t>(down) * width + left) * 3;
      int32_t across[3] = {half_step, half_step, half_step};
      for (int h = 0; h < horizontal.count[j]; ++h) {
        if (left + h < 0 || left + h >= width) continue;
        for (int c = 0; c < 3; ++c) across[c] += horizontal.weights[j * horizontal.taps + h] * row[h * 3 + c];
      }
      for (int c = 0; c < 3; ++c) sum[c] += vertical.weights[i * vertical.taps + v] * resampled_byte(across[c]);
    }
    for (int c = 0; c < 3; ++c) store_element(x, pixel * 3 + c, normalized[c * 256 + resampled_byte(sum[c])]);
  });
}

/// ResampleAxis in one buffer of device memory.
class ResidentAxis {
 public:
  ResidentAxis(MemoryResource& memory, const ResampleAxis& axis, Stream& stream)
      : taps_(axis.taps),
        size_(axis.first.size()),
        data_(memory, 2 * size_ + axis.weights.size(), MemoryCategory::data) {
    copy_to_device(data_.data(), axis.first.data(), size_ * sizeof(int32_t), stream);
    copy_to_device(data_.data() + size_, axis.count.data(), size_ * sizeof(int32_t), stream);
    copy_to_device(data_.data() + 2 * size_, axis.weights.data(), axis.weights.size() * sizeof(int32_t), stream);
  }
  AxisView view() const { return {taps_, data_.data(), data_.data() + size_, data_.data() + 2 * size_}; }

 private:
  int taps_;
  size_t size_;
  Buffer<int32_t> data_;
};

class ImagePreparerCuda final : public ImagePreparer {
 public:
  ImagePreparerCuda(MemoryResource& memory, const ResampleTables& tables, Stream& stream)
      : width_(tables.width),
        height_(tables.height),
        crop_(tables.crop),
        horizontal_(memory, tables.horizontal, stream),
        vertical_(memory, tables.vertical, stream),
        normalized_(memory, 3 * 256, MemoryCategory::data),
        stream_(stream) {
    copy_to_device(normalized_.data(), tables.normalized.data(), normalized_.bytes(), stream);
  }

  void run(Activations x, TensorView<const uint8_t> images, TensorView<const Augmentation> augmentations) override {
    expect_shape(images.shape(), {x.size(0), height_, width_, 3}, "images");
    expect_shape(augmentations.shape(), {x.size(0)}, "augmentations");
    expect_shape(x.shape(), {x.size(0), crop_, crop_, 3}, "prepared images");
    const int64_t pixels = x.elements() / 3;
    const Work work{.bytes = static_cast<double>(x.elements()) * static_cast<double>(bytes_of(x.precision())) +
                             static_cast<double>(images.elements())};
    with_pointer(x, [&]<class T>(T* to) {
      launch("prepare_images", work, grid_for(pixels), stream_, prepare_images_kernel<T>, to, images.data(),
             augmentations.data(), horizontal_.view(), vertical_.view(), normalized_.data(), width_, height_, crop_,
             pixels);
    });
  }

 private:
  int width_;
  int height_;
  int crop_;
  ResidentAxis horizontal_;
  ResidentAxis vertical_;
  Buffer<float> normalized_;
  Stream& stream_;
};

}  // namespace

namespace cuda {

std::unique_ptr<ImagePreparer> make_image_preparer(MemoryResource& memory, const ResampleTables& tables,
                                                   Stream& stream) {
  return std::make_unique<ImagePreparerCuda>(memory, tables, stream);
}

}  // namespace cuda
}  // namespace nibblenet
