#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibblenet {

/// One of the numbers that a codebook is trained on, and how much its error counts (at least 0).
struct Sample {
  float value = 0;
  float weight = 1;
};

/// The 2^bits values, ascending, with a least sum of weight (sample - nearest value)^2: k-means in one dimension.
/// Up to 2048 samples get the optimum, found by dynamic programming (Wang and Song 2011, with the divide and conquer of
/// Gronlund 2017, arXiv 1701.07204); more of them are first gathered in 2048 bins of equally many, and Lloyd's
/// iteration goes on over all samples from the optimum of the bins. Where there are fewer different samples than values
/// the largest one is repeated; without samples all values are 0. Finite samples only. Sorts `samples`.
std::vector<float> train_codebook(std::vector<Sample>& samples, int bits);

}  // namespace nibblenet
