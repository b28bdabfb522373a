#pragma once

#include <string>
#include <string_view>

#include "engine/io/json.h"

namespace nibblenet::tools {

/// What --version prints: the version of nibblenet, the commit and the compiler of this build, and
/// the devices that it finds here.
std::string version_text(std::string_view tool);

/// "version" and "commit", which every JSON of a tool has under "nibblenet".
nlohmann::json version_json();

}  // namespace nibblenet::tools
