#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "layers/network/network_spec.h"

namespace nibblenet::tools {

/// The flags that say how weights are stored.
struct SchemeFlags {
  std::optional<double> bits;  ///< --bits; nothing: 4, or the method's only width
  std::string method;
  std::string granularity;
  std::string scale;
  std::string sign;
  bool zero_point = false;
  bool rotate = false;
  std::vector<std::string> layers;  ///< --layer, each PATTERN=SCHEME

  /// Adds the flags to a program.
  void add_to(CLI::App& app);
  /// Whether --bits and --layer are the only flags given: then the measured defaults apply.
  bool only_bits() const;
};

/// Whether a shell pattern matches the name of a weight ("LAYER.weight") or of its layer ("LAYER").
bool matches_layer(const std::string& pattern, const std::string& weight);

/// The scheme of every weight: --layer's, the flags', or the measured default.
class SchemeChoice {
 public:
  /// `gptq`: whether GPTQ chooses the codes, for which other defaults measured best. Throws
  /// UsageError for flags that make no scheme.
  /// `model`, the network's parameters, outlives this; null: any weights, which know no network.
  SchemeChoice(const SchemeFlags& flags, bool gptq, const NetworkSpec& network, const StateDict* model);
  SchemeChoice(const SchemeFlags& flags, bool gptq, const StateDict& model)
      : SchemeChoice(flags, gptq, network_of(model), &model) {}
  /// One scheme for all weights but those that `layers` (--layer) match.
  SchemeChoice(const Scheme& scheme, const std::vector<std::string>& layers, const StateDict& model);
  /// Throws UsageError for flags that make no scheme in any network.
  static void check(const SchemeFlags& flags);

  /// The width of weights that no --layer matches.
  double bits() const { return bits_; }
  /// The scheme of a weight. Throws UsageError where none fits.
  Scheme operator()(const Parameter& weight);
  /// The scheme that --layer gives a weight; nothing if no pattern matches.
  std::optional<Scheme> overridden(const std::string& weight);
  /// Throws UsageError when a --layer has matched no weight so far.
  void expect_all_used() const;

 private:
  /// One --layer, like "features.*=linear:8:channel".
  struct Override {
    std::string pattern;
    Scheme scheme;
    bool used = false;
  };
  static std::vector<Override> parse(const std::vector<std::string>& texts);

  Scheme chosen(const Parameter& weight);

  const NetworkSpec* network_;
  const StateDict* model_;
  bool measured_default_;
  bool gptq_;
  std::vector<Override> overrides_;
  Scheme scheme_;
  double bits_;
};

}  // namespace nibblenet::tools
