#include "kernels/cudnn/convolution_cudnn.h"

#include <array>
#include <limits>

#include "kernels/cudnn/replayed_time.h"

namespace nibblenet {
namespace {

/// The algorithms that ran, fastest first, as cuDNN returns them.
template <class Choice, class Performance, class Find>
std::vector<Choice> measured(bool deterministic, Find find) {
  std::array<Performance, 16> results{};
  int count = 0;
  check(find(static_cast<int>(results.size()), &count, results.data()), "timing a convolution's algorithms");
  std::vector<Choice> choices;
  for (const Performance& result : std::span(results).first(static_cast<size_t>(count)))
    if (result.status == CUDNN_STATUS_SUCCESS && (!deterministic || result.determinism == CUDNN_DETERMINISTIC))
      choices.push_back({static_cast<int>(result.algo), result.memory, result.mathType, result.time});
  return choices;
}

}  // namespace

ConvolutionCudnn::Plan& ConvolutionCudnn::plan(Direction direction, const Shape& x, const Shape& y, Window window,
                                               Precision precision, Epilogue epilogue) {
  const Key key(direction, x, y, window, precision, epilogue);
  const auto known = plans_.find(key);
  if (known != plans_.end()) return known->second;

  Plan plan{describe_images(x, precision),
            describe_images(y, precision),
            describe_images({1, 1, 1, y[3]}, precision),
            describe_filters(y[3], x[3], window.size, precision),
            describe_convolution(window, precision),
            {}};
  switch (direction) {
    case Direction::forward:
      plan.choices = measured<Choice, cudnnConvolutionFwdAlgoPerf_t>(false, [&](auto... results) {
        return cudnn().find_forward(handle_, plan.x.get(), plan.filters.get(), plan.convolution.get(), plan.y.get(),
                                    results...);
      });
      break;
    case Direction::backward_data:
      plan.choices = measured<Choice, cudnnConvolutionBwdDataAlgoPerf_t>(true, [&](auto... results) {
        return cudnn().find_backward_data(handle_, plan.filters.get(), plan.y.get(), plan.convolution.get(),
                                          plan.x.get(), results...);
      });
      break;
    case Direction::backward_filters:
      plan.choices = measured<Choice, cudnnConvolutionBwdFilterAlgoPerf_t>(true, [&](auto... results) {
        return cudnn().find_backward_filter(handle_, plan.x.get(), plan.y.get(), plan.convolution.get(),
                                            plan.filters.get(), results...);
      });
      break;
  }
  // Entries may allow TF32: the baseline of float32 is float32.
  if (precision == Precision::float32)
    for (Choice& choice : plan.choices) choice.math = CUDNN_FMA_MATH;
  return plans_.emplace(key, std::move(plan)).first->second;
}

/// Drops algorithms that a graph cannot capture, unless there are no others.
float ConvolutionCudnn::keep_fastest(Plan& plan, const std::function<cudnnStatus_t(const Choice&)>& run) {
  constexpr float worth_a_try = 2;
  std::optional<Choice> fastest;
  float least = std::numeric_limits<float>::infinity();
  for (const Choice& choice : plan.choices) {
    if (choice.alone > worth_a_try * least) break;
    const std::optional<float> time = replayed_time(stream_, [&] {
      return cudnn().set_convolution_math(plan.convolution.get(), choice.math) == CUDNN_STATUS_SUCCESS &&
             run(choice) == CUDNN_STATUS_SUCCESS;
    });
    if (!time || *time >= least) continue;
    least = *time;
    fastest = choice;
  }
  if (fastest) plan.choices = {*fastest};
  return least;
}

/// Finds the fastest plan of cuDNN's graph that takes less than `least` milliseconds.
void ConvolutionCudnn::compare_graph(Plan& plan, float least, const std::function<cudnnStatus_t(size_t)>& run) {
  for (size_t i = 0; i < plan.graph->plans(); ++i) {
    const std::optional<float> time = replayed_time(stream_, [&] { return run(i) == CUDNN_STATUS_SUCCESS; });
    if (!time || *time >= least) continue;
    least = *time;
    plan.of_graph = i;
  }
}

namespace {

/// Returns nothing if this cuDNN has no graphs, or none for this convolution.
std::unique_ptr<ConvolutionGraph> graph_of(const Shape& x, const Shape& y, Window window, Epilogue epilogue) {
  try {
    return std::make_unique<ConvolutionGraph>(x, y, window, epilogue);
  } catch (const CudaError&) {
    return nullptr;
  }
}

}  // namespace

template <class Run>
void ConvolutionCudnn::run_fastest(Plan& plan, const char* what, Run run) {
  // Some algorithms run alone, but not with a bias and an activation.
  cudnnStatus_t status = CUDNN_STATUS_NOT_SUPPORTED;
  for (const Choice choice : plan.choices) {
    check(cudnn().set_convolution_math(plan.convolution.get(), choice.math), what);
    status = run(choice);
    if (status != CUDNN_STATUS_SUCCESS) continue;
    plan.choices = {choice};
    return;
  }
  check(status, what);
}

void ConvolutionCudnn::forward(Activations y, ConstActivations x, const void* filters, const void* bias, Window window,
                               Epilogue epilogue) {
  Plan& p = plan(Direction::forward, x.shape(), y.shape(), window, x.precision(), epilogue);
  const cudnnActivationDescriptor_t activation = epilogue == Epilogue::relu ? relu_.get() : identity_.get();
  const auto run = [&](const Choice& choice) {
    return cudnn().convolution_forward(handle_, &one, p.x.get(), x.data(), p.filters.get(), filters,
                                       p.convolution.get(), static_cast<cudnnConvolutionFwdAlgo_t>(choice.algorithm),
                                       workspace_(choice.workspace), choice.workspace, &zero, p.y.get(), y.data(),
                                       p.bias.get(), bias, activation, p.y.get(), y.data());
  };
  const auto run_graph = [&](size_t i) {
    return p.graph->run(i, handle_, y.data(), x.data(), filters, bias, workspace_(p.graph->workspace(i)));
  };
  const bool aligned = on_16_bytes(x.data()) && on_16_bytes(y.data());  // filters and bias always are
  if (!p.compared) {
    const float least = keep_fastest(p, run);
    if (x.precision() == Precision::float16 && aligned)  // float32 might be TF32 there
      p.graph = graph_of(x.shape(), y.shape(), window, epilogue);
    if (p.graph != nullptr) compare_graph(p, least, run_graph);
    p.compared = true;
  }
  if (p.of_graph && aligned)
    check(run_graph(*p.of_graph), "convolution");
  else
    run_fastest(p, "convolution", run);
}

void ConvolutionCudnn::backward_data(TensorView<float> dx, TensorView<const float> dy, const float* filters,
                                     Window window) {
  Plan& p = plan(Direction::backward_data, dx.shape(), dy.shape(), window, Precision::float32);
  run_fastest(p, "data gradient of a convolution", [&](const Choice& choice) {
    return cudnn().convolution_backward_data(
        handle_, &one, p.filters.get(), filters, p.y.get(), dy.data(), p.convolution.get(),
        static_cast<cudnnConvolutionBwdDataAlgo_t>(choice.algorithm), workspace_(choice.workspace), choice.workspace,
        &zero, p.x.get(), dx.data());
  });
}

void ConvolutionCudnn::backward_filters(float* dfilters, TensorView<const float> dy, TensorView<const float> x,
                                        Window window) {
  Plan& p = plan(Direction::backward_filters, x.shape(), dy.shape(), window, Precision::float32);
  run_fastest(p, "filter gradient of a convolution", [&](const Choice& choice) {
    return cudnn().convolution_backward_filter(
        handle_, &one, p.x.get(), x.data(), p.y.get(), dy.data(), p.convolution.get(),
        static_cast<cudnnConvolutionBwdFilterAlgo_t>(choice.algorithm), workspace_(choice.workspace), choice.workspace,
        &zero, p.filters.get(), dfilters);
  });
}

void ConvolutionCudnn::backward_bias(TensorView<float> dbias, TensorView<const float> dy) {
  const TensorDescriptor from = describe_images(dy.shape(), Precision::float32);
  const TensorDescriptor to = describe_images({1, 1, 1, dy.size(3)}, Precision::float32);
  check(cudnn().convolution_backward_bias(handle_, &one, from.get(), dy.data(), &zero, to.get(), dbias.data()),
        "bias gradient");
}

}  // namespace nibblenet
