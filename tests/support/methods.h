#pragma once

#include <algorithm>
#include <ostream>
#include <string>

#include "engine/quant/scheme.h"

// Methods as parameters of tests: how GoogleTest prints them and names the tests.

namespace nibblenet {

/// What a test's list shows as its parameter; without this GoogleTest prints the bytes.
inline void PrintTo(const MethodTraits& traits, std::ostream* out) { *out << traits.name; }

}  // namespace nibblenet

namespace nibblenet::testing {

/// A method's name with '_' for '-', as GoogleTest allows it in the name of a test.
inline std::string identifier(std::string_view name) {
  std::string text(name);
  std::ranges::replace(text, '-', '_');
  return text;
}

}  // namespace nibblenet::testing
