#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>

#include "engine/io/state_dict.h"

namespace nibblenet::tools {

/// The kind of model that a tool looks for.
enum class ModelKind { fine_tuned, packed };

/// `given` when not empty; else the newest model of that kind in weights/ at the project's root,
/// whose name is printed. Throws UsageError when there is none.
std::filesystem::path find_model(const std::string& given, ModelKind kind);

/// Reads a float or packed model; of a checkpoint, its parameters. Prints minor faults as
/// warnings. Errors name the file. Throws FormatError when it holds no network that networks()
/// lists.
StateDict load_model(const std::filesystem::path& path, Checksums checksums = Checksums::warn);

/// What the file holds, under the file's own names: load_model() without its checks.
StateDict read_model(const std::filesystem::path& path, Checksums checksums = Checksums::warn);

/// Opens a model's file, so that its faults are known before other work starts. Throws IoError or
/// FormatError.
void check_model_file(const std::filesystem::path& path);

/// Prints to the standard error the minor faults that reading a model found.
void print_warnings(const StateDict& dict);

/// Adds --strict and --key, as every tool that reads a MODEL has them. load_model() takes the
/// weights under the key from files that are not of this program's own formats.
void add_strict_option(CLI::App& app, Checksums& checksums);

/// What a MODEL argument may be, for help texts.
inline constexpr const char* model_files = "safetensors, or a PyTorch state dict: .pth, .pt, whatever its name";

}  // namespace nibblenet::tools
