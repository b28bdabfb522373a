#include "tools/study/shards.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>

#include "engine/io/json.h"

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;

constexpr const char* plan_file = "shard.json";
constexpr size_t most_shards = 100'000;

/// A whole number at the text's begin, which it loses; 0 where there is none.
size_t take_number(std::string_view& text) {
  size_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return 0;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return number;
}

/// Parses "2/4", or "2-of-4" with another separator. Nothing for another text.
std::optional<Shard> shard_of(std::string_view text, std::string_view separator) {
  Shard shard;
  shard.number = take_number(text);
  if (!text.starts_with(separator)) return std::nullopt;
  text.remove_prefix(separator.size());
  shard.of = take_number(text);
  if (!text.empty() || shard.number < 1 || shard.number > shard.of || shard.of > most_shards) return std::nullopt;
  return shard;
}

/// The shards that have a folder, in their order. Throws UsageError when they are of different
/// numbers.
std::vector<Shard> shards_in(const fs::path& sweep) {
  constexpr std::string_view prefix = "shard-";
  std::vector<Shard> shards;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(sweep, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix) || !entry.is_directory(error)) continue;
    if (const auto shard = shard_of(std::string_view(name).substr(prefix.size()), "-of-")) shards.push_back(*shard);
  }
  if (shards.empty()) fail<UsageError>("{} holds no shards; run tools/sweep --shard 1/N first", sweep.string());
  std::ranges::sort(shards, {}, &Shard::number);
  for (const Shard& shard : shards)
    if (shard.of != shards.front().of)
      fail<UsageError>("{} holds shards of {} and of {}: remove those that are not of this sweep", sweep.string(),
                       shards.front().of, shard.of);
  return shards;
}

std::vector<std::string> read_plan(const fs::path& folder) {
  try {
    return nlohmann::json::parse(read_text_file(folder / plan_file)).at("schemes").get<std::vector<std::string>>();
  } catch (const nlohmann::json::exception&) {
    fail<FormatError>("{} is missing or damaged: give the shard's command again", (folder / plan_file).string());
  }
}

/// What the rows of all shards must share. Another processor may give the float model other bits,
/// and another calibration other codes.
class Likeness {
 public:
  /// Throws UsageError where a folder's rows do not compare with those of the folders before.
  void expect_of(const SweepFolder& folder) {
    for (const Row& row : folder.rows()) {
      if (row.is_float()) expect_float(folder, row);
      if (!row.calibration.empty()) expect_calibration(folder, row.calibration);
    }
  }

 private:
  void expect_float(const SweepFolder& folder, const Row& row) {
    if (float_folder_.empty()) {
      float_folder_ = folder.path().string();
      correct_ = row.correct;
      loss_ = row.loss;
    } else if (row.correct != correct_ || row.loss != loss_) {
      fail<UsageError>(
          "{} and {} do not agree on the float model ({} and {} right): rows of unlike machines do not compare",
          float_folder_, folder.path().string(), correct_, row.correct);
    }
  }

  void expect_calibration(const SweepFolder& folder, const std::string& calibration) {
    if (calibration_.empty()) {
      calibrated_folder_ = folder.path().string();
      calibration_ = calibration;
    } else if (calibration != calibration_) {
      fail<UsageError>("{} and {} were calibrated differently ({}, and {}): rows do not compare", calibrated_folder_,
                       folder.path().string(), calibration_, calibration);
    }
  }

  std::string float_folder_;
  int64_t correct_ = 0;
  double loss_ = 0;
  std::string calibrated_folder_;
  std::string calibration_;
};

/// Takes one of each list in turn until all are empty: the reverse of share_of().
template <class T>
std::vector<T> by_turns(const std::vector<std::vector<T>>& lists) {
  std::vector<T> all;
  for (size_t i = 0, before = 1; all.size() != before; ++i) {
    before = all.size();
    for (const std::vector<T>& list : lists)
      if (i < list.size()) all.push_back(list[i]);
  }
  return all;
}

}  // namespace

Shard parse_shard(const std::string& text) {
  const std::optional<Shard> shard = shard_of(text, "/");
  if (!shard) fail<UsageError>("--shard {}: expected NUMBER/OF like 2/4, with a NUMBER from 1 to OF", text);
  return *shard;
}

std::string to_string(const Shard& shard) { return fmt::format("{}/{}", shard.number, shard.of); }

std::vector<SweepScheme> share_of(const std::vector<SweepScheme>& schemes, const Shard& shard) {
  std::vector<SweepScheme> share;
  for (size_t i = shard.number - 1; i < schemes.size(); i += shard.of) share.push_back(schemes[i]);
  return share;
}

fs::path folder_of(const fs::path& sweep, const Shard& shard) {
  return sweep / fmt::format("shard-{}-of-{}", shard.number, shard.of);
}

void write_plan(const fs::path& folder, const std::vector<SweepScheme>& schemes) {
  std::vector<std::string> names;
  for (const SweepScheme& scheme : schemes) names.push_back(to_string(scheme));
  write_text_file(folder / plan_file, nlohmann::json{{"schemes", names}}.dump(2) + "\n");
}

MergedShards merge_shards(const fs::path& sweep) {
  const std::vector<Shard> shards = shards_in(sweep);
  const SweepSetup setup = read_setup(folder_of(sweep, shards.front()));
  MergedShards merged{.folder = SweepFolder(sweep, setup), .schemes = {}, .missing = {}};
  std::vector<std::vector<std::string>> plans(shards.front().of);
  std::map<std::string, nlohmann::json> rows;  // added once all shards are known to fit
  std::string float_scheme;
  std::optional<std::vector<uint8_t>> float_right = merged.folder.float_right();
  Likeness likeness;
  likeness.expect_of(merged.folder);
  for (size_t number = 1; number <= plans.size(); ++number) {
    const Shard shard{number, plans.size()};
    if (std::ranges::find(shards, number, &Shard::number) == shards.end()) {
      merged.missing.push_back(fmt::format("shard {}: not begun", to_string(shard)));
      continue;
    }
    const SweepFolder folder(folder_of(sweep, shard), setup);
    likeness.expect_of(folder);
    const std::vector<std::string> plan = read_plan(folder.path());
    const auto has_row = [&](const std::string& scheme) { return folder.find(scheme) != nullptr; };
    if (const auto done = std::ranges::count_if(plan, has_row); done < std::ssize(plan))
      merged.missing.push_back(fmt::format("shard {}: {} of {} rows", to_string(shard), done, plan.size()));
    plans[number - 1] = plan;
    for (const Row& row : folder.rows()) {
      if (row.is_float()) float_scheme = row.scheme;
      rows.emplace(row.scheme, row.document);
    }
    if (!float_right) float_right = folder.float_right();
  }
  const auto add = [&](const std::string& scheme) {
    if (const auto row = rows.find(scheme); row != rows.end() && merged.folder.find(scheme) == nullptr)
      merged.folder.append(row->second);
  };
  if (float_right) merged.folder.save_float_right(*float_right);
  add(float_scheme);
  merged.schemes = by_turns(plans);
  std::ranges::for_each(merged.schemes, add);
  return merged;
}

}  // namespace nibblenet::tools
