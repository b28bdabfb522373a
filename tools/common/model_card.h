#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/quant/size.h"

namespace nibblenet::tools {

/// The accuracy of a model on some images.
struct CardEvaluation {
  std::string data;  ///< "CIFAR-10 (binary)"
  int64_t images = 0;
  int64_t correct = 0;
  double loss = 0;  ///< mean cross-entropy
};

/// What a model card says.
struct CardFacts {
  std::filesystem::path model;  ///< the packed file
  std::string network;          ///< "AlexNet"
  int image_size = 0;           ///< pixels
  std::vector<std::string> classes;
  std::map<std::string, std::string> metadata;  ///< of the file: how it was made
  std::vector<SizeRow> ledger;
  int64_t file_bytes = 0;
  int64_t header_bytes = 0;
  std::optional<CardEvaluation> evaluation;
};

/// A model card in Hugging Face's form, README.md: facts in YAML for their index, then text.
std::string model_card(const CardFacts& facts);
/// Whether a file begins like those of model_card(). False for one that cannot be read.
bool is_model_card(const std::filesystem::path& path);

}  // namespace nibblenet::tools
