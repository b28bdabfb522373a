#pragma once

#include <filesystem>
#include <string>

namespace nibblenet::tools {

enum class ModelKind { fine_tuned, packed };

/// `given` when not empty; else the newest model of that kind in weights/ at the project's root, whose name is printed.
/// Throws UsageError when there is none.
std::filesystem::path find_model(const std::string& given, ModelKind kind);

}  // namespace nibblenet::tools
