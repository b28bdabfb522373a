"""Networks whose weights really are n-bit numbers.

`check` says what weights that somebody rounded in float32 take to store, whatever they claim.
`pack`, `load` and `Model` make and run packed models; `evaluate` and `sweep` measure them;
`simulate` rounds as the original notebooks do; `inspect` shows what a file holds. `nibblenet.torch`
puts packed layers into PyTorch's models. `__version__` and `__commit__` name the build. Errors are
ValueError for arguments, OSError for files that cannot be read or written, and `nibblenet.Error`
for all else.
"""

import atexit as _atexit

from . import _core
from ._check import CheckReport, check
from ._core import Error, __commit__, __version__
from ._model import (Evaluation, Model, PackedModel, Size, evaluate, inspect, load, pack, simulate, sweep)

__all__ = ["__commit__", "__version__", "CheckReport", "Error", "Evaluation", "Model", "PackedModel", "Size",
           "check", "evaluate", "inspect", "load", "pack", "simulate", "sweep"]

_atexit.register(_core.shut_down)


def __getattr__(name: str) -> object:
    """nibblenet.torch, which imports PyTorch, at its first use."""
    if name == "torch":
        from importlib import import_module
        return import_module(".torch", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
