#pragma once

// Stands in front of the kernels' own header of this name where they run on the CPU.
#include "tests/hostexec/gpu_shim.h"
