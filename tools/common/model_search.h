#pragma once

#include <filesystem>
#include <string>

#include "engine/model/state_dict.h"

namespace nibblenet::tools {

enum class ModelKind { fine_tuned, packed };

/// `given` when not empty; else the newest model of that kind in weights/ at the project's root, whose name is printed.
/// Throws UsageError when there is none.
std::filesystem::path find_model(const std::string& given, ModelKind kind);

/// Reads a float or packed model; of a checkpoint, its parameters. Errors name the file. Throws FormatError when it
/// holds no AlexNet.
StateDict load_model(const std::filesystem::path& path);

}  // namespace nibblenet::tools
