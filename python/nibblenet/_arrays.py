"""What an argument holds, as a NumPy array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_CPU = 1  # DLPack's kDLCPU
FLOAT32, UINT8 = np.dtype(np.float32), np.dtype(np.uint8)


def array(value: Any, name: str) -> np.ndarray:
    """NumPy's view of a value: an array, or a tensor of the CPU that DLPack can hand over.

    Copies nothing but bfloat16, which NumPy lacks and which becomes float32. Raises ValueError for
    tensors that require grad, of another device, or that are none.
    """
    if isinstance(value, np.ndarray):
        if value.dtype in (FLOAT32, UINT8):
            return value  # the usual ones need no look
        found = value
    elif hasattr(value, "__dlpack__"):
        if getattr(value, "requires_grad", False):
            raise ValueError(f"{name} requires grad; pass {name}.detach()")
        try:
            device = value.__dlpack_device__()[0]
        except Exception as error:  # PyTorch's of its device "meta"
            raise ValueError(f"{name} has no memory that DLPack could hand over: {error}") from error
        if device != _CPU:
            raise ValueError(f"{name} is not in the CPU's memory; pass {name}.cpu()")
        if hasattr(value, "resolve_neg"):
            value = value.resolve_neg()  # DLPack knows nothing of signs that a view of PyTorch's only notes
        if str(getattr(value, "dtype", "")).endswith("bfloat16"):
            value = value.float()
        try:
            found = np.from_dlpack(value)
        except Exception as error:
            raise ValueError(f"{name} cannot be handed over by DLPack: {error}") from error
    else:
        raise ValueError(f"{name}: expected a NumPy array or a tensor, got {type(value).__name__}")
    if found.dtype.hasobject or found.dtype.fields is not None:
        raise ValueError(f"{name}: expected numbers, got dtype {found.dtype}")
    if not found.dtype.isnative:
        raise ValueError(f"{name} has the other byte order ({found.dtype.str}); "
                         f"pass {name}.astype({name}.dtype.newbyteorder('='))")
    return found


def detached(value: Any) -> Any:
    """A parameter's tensor: weights are read, not differentiated. Anything else as it is."""
    return value.detach() if getattr(value, "requires_grad", False) and hasattr(value, "detach") else value


def dense(values: np.ndarray) -> np.ndarray:
    """The array itself if it is aligned and in C order, else a copy that is."""
    flags = values.flags
    return values if flags.c_contiguous and flags.aligned else np.require(values, requirements=["C", "A"])


def floats(value: Any, name: str) -> np.ndarray:
    """float32, in C order. float16 is widened, which is exact; other types are refused: ValueError."""
    found = array(value, name)
    if found.dtype not in (np.float32, np.float16):
        raise ValueError(f"{name}: expected float32 or float16, got {found.dtype}; convert it first")
    return np.require(found, np.float32, ["C", "A"])


def state_dict(values: Mapping[Any, Any]) -> list[tuple[str, np.ndarray]]:
    """Names and float32 values of a state dict. Scalars, like counters of batches, are left out."""
    found = []
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f"a state dict's names are strings, got {name!r}")
        if len(getattr(value, "shape", (1,))) == 0:
            continue
        found.append((name, floats(detached(value), name)))
    if not found:
        raise ValueError("the state dict holds no tensors")
    return found
