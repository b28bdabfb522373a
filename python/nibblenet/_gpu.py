"""Tensors of a GPU: PyTorch's, in whose current stream nibblenet computes on them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from . import _core

if TYPE_CHECKING:
    import torch

_CUDA = 2  # DLPack's kDLCUDA


def number_of(value: Any) -> int | None:
    """The GPU in whose memory an array lies, as CUDA counts; None where it is in none."""
    if not hasattr(value, "__dlpack_device__"):
        return None
    try:
        kind, number = value.__dlpack_device__()
    except Exception:  # PyTorch's device "meta", which whoever reads the values refuses
        return None
    return int(number) if kind == _CUDA else None


def shared(tensor: torch.Tensor) -> Any:
    """What hands a tensor's memory over, on whichever GPU. It orders no streams: the core does."""
    return sys.modules["torch"].utils.dlpack.to_dlpack(tensor)


def stream_of(tensor: torch.Tensor) -> int:
    """PyTorch's current stream on the tensor's GPU, as a number."""
    return sys.modules["torch"].cuda.current_stream(tensor.device).cuda_stream


def logits(core: _core.Model, images: Any, classes: int, batch: int) -> torch.Tensor:
    """Logits [N, classes] of images on the model's GPU, in the order of PyTorch's current stream.

    images: a torch.Tensor, uint8 [N, H, W, 3] or float32 [N, 3, S, S]. Raises ValueError for others.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(images, torch.Tensor):
        raise ValueError("images: arrays of a GPU are taken as PyTorch's tensors; pass torch.from_dlpack(images)")
    if images.requires_grad:
        raise ValueError("images requires grad; pass images.detach()")
    if images.dim() != 4 or images.layout != torch.strided:
        raise ValueError(f"images: expected a dense tensor of 4 dimensions, got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        ready = images.contiguous()
    elif images.dtype == torch.float32:
        ready = images.resolve_neg().permute(0, 2, 3, 1).contiguous()
    else:
        raise ValueError(f"images: expected uint8 [N, H, W, 3] or float32 [N, 3, S, S], got {images.dtype}")
    y = images.new_empty((len(images), classes), dtype=torch.float32)
    core.logits_on_gpu(shared(y), shared(ready), batch, stream_of(images))
    return y
