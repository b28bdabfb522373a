#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tools/study/folder.h"

namespace nibblenet::tools {

/// A share of a sweep's schemes, numbered from 1. It is a sweep in a folder of its own, so that
/// shards on any machines never wait for each other.
struct Shard {
  size_t number = 1;
  size_t of = 1;
};

/// Parses --shard: "2/4". Throws UsageError.
Shard parse_shard(const std::string& text);
std::string to_string(const Shard& shard);

/// Every `of`-th scheme, from the `number`-th on.
std::vector<SweepScheme> share_of(const std::vector<SweepScheme>& schemes, const Shard& shard);

/// DIR/shard-2-of-4, where DIR is the sweep's folder.
std::filesystem::path folder_of(const std::filesystem::path& sweep, const Shard& shard);

/// Notes in a shard's folder which schemes it is to measure, for merge_shards(). Throws IoError.
void write_plan(const std::filesystem::path& folder, const std::vector<SweepScheme>& schemes);

/// What merge_shards() found.
struct MergedShards {
  SweepFolder folder;                ///< the sweep's, with the rows of all shards
  std::vector<std::string> schemes;  ///< names of what all shards were to measure, in the sweep's order
  std::vector<std::string> missing;  ///< "shard 2/4: 3 of 7 rows", "shard 3/4: not begun"
};

/// Adds the rows of a sweep's shards to its own, each once; shards stay as they are. Throws
/// UsageError when there are none, when one is at work or has another setup, or when their float
/// models or calibrations were not measured alike; FormatError for damaged files; IoError.
MergedShards merge_shards(const std::filesystem::path& sweep);

}  // namespace nibblenet::tools
