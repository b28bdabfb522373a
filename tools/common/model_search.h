#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>

#include "engine/io/state_dict.h"
#include "tools/common/command_line.h"

namespace nibblenet::tools {

/// The kind of model that a tool looks for.
enum class ModelKind { fine_tuned, packed };

/// `given` when not empty; else the newest model of this kind in weights/ at the project's root,
/// whose path it prints. Throws UsageError when there is none.
std::filesystem::path find_model(const std::string& given, ModelKind kind);

/// Reads a float or packed model, or the parameters of a checkpoint. Gives parameters their
/// canonical names and folds batch norms into convolutions. Prints minor faults as warnings. Errors
/// name the file. Throws FormatError when it holds none of networks(), or NaN or infinities among
/// its floats.
StateDict load_model(const std::filesystem::path& path, const Reading& reading = {});

/// The file's tensors under the file's own names: the first step of load_model(). Without a key in
/// `reading` that of --key applies. Throws UsageError for a key and a file of nibblenet's own.
StateDict read_model(const std::filesystem::path& path, Reading reading = {});

/// make_canonical(), and prints what it changed: the second step of load_model(), for a dict from
/// anywhere.
void prepare_model(StateDict& dict, const std::string& title);

/// Opens a model's file and reads its header, to report faults before other work starts. Throws
/// IoError or FormatError.
void check_model_file(const std::filesystem::path& path);

/// Prints the warnings of a state dict to the standard error.
void print_warnings(const StateDict& dict);

/// NAME of --key where `path` is a file of another program, else empty.
std::string key_for(const std::filesystem::path& path);
/// Reads files of other programs as if --key NAME had been given, unless it was.
void give_key(const std::string& name);

/// Adds --strict and --key, which every tool that reads a MODEL has. load_model() and read_model()
/// apply the key to files that nibblenet did not write. They throw UsageError when it is for none.
void add_strict_option(CLI::App& app, Checksums& checksums);

/// What tools that compute with a model have in common.
struct CommonOptions {
  std::string model;
  Checksums checksums = Checksums::warn;
  DeviceOptions device;
  std::string json;

  /// Adds all but the model and --precision.
  void add_to(CLI::App& app);
};

/// Help text: what a MODEL argument may be.
inline constexpr const char* model_files = "safetensors, or a PyTorch state dict: .pth, .pt, whatever its name";

}  // namespace nibblenet::tools
