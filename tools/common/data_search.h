#pragma once

#include <filesystem>
#include <string>

namespace nibblenet::tools {

/// Where the images come from: `given` (--data) if not empty, else NIBBLENET_DATA, else data/ at
/// the project's root; else CIFAR-10 is downloaded there; offline, a stand-in is drawn into
/// data/standin. Prints which it was. Throws when `given` or NIBBLENET_DATA name nothing that
/// exists.
std::filesystem::path find_data(const std::string& given);

/// Help text of --data.
extern const char* const data_help;

}  // namespace nibblenet::tools
