#pragma once

#include <nanobind/nanobind.h>

namespace nibblenet::python {

/// Adds PackedLayer and what nibblenet.torch is made of.
void bind_layers(nanobind::module_& m);

}  // namespace nibblenet::python
