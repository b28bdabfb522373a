#pragma once

#include <string>
#include <string_view>

namespace nibblenet::tools {

/// What --version prints: the version of nibblenet, the commit and the compiler of this build, and
/// the devices that it finds here.
std::string version_text(std::string_view tool);

}  // namespace nibblenet::tools
