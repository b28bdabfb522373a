#include "tools/common/default_schemes.h"

namespace nibblenet::tools {

Scheme default_scheme_for(std::string_view, int bits) { return default_scheme(Method::linear, bits); }

}  // namespace nibblenet::tools
