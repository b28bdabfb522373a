#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace nibblenet {

/// A batch of CIFAR-10's Python version (a pickled dict whose "data" is a NumPy array [N, 3072] of
/// bytes, and whose "labels" a list of integers) as records of the binary version. Nothing that the
/// pickle asks for is called. Throws FormatError naming `location`.
std::vector<uint8_t> records_of_pickle(std::span<const uint8_t> file, const std::string& location);

/// The class names of its batches.meta ("label_names"), a line each. Throws FormatError.
std::vector<uint8_t> names_of_pickle(std::span<const uint8_t> file, const std::string& location);

}  // namespace nibblenet
