#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibblenet {

/// A number that a codebook is trained on, and the weight of its error (at least 0).
struct Sample {
  float value = 0;
  float weight = 1;
};

/// K-means in one dimension: the 2^bits ascending values of least sum of weight (sample - nearest
/// value)^2. Up to 2048 samples, the result is the optimum, by dynamic programming (Wang and Song
/// 2011, with the divide and conquer of Gronlund 2017, arXiv 1701.07204). More samples are first
/// gathered in 2048 bins of equal counts; Lloyd's iteration over all samples then starts from the
/// bins' optimum. If there are fewer different samples than values, the largest is repeated.
/// Without samples, all values are 0. Requires: finite samples. Sorts `samples`.
std::vector<float> train_codebook(std::vector<Sample>& samples, int bits);

}  // namespace nibblenet
