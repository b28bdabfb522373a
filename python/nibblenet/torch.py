"""Packed layers for inference in PyTorch's models, on the CPU in float32, on a GPU in float16.

`replace` puts the layers of a packed model in place of a torch.nn.Module's; `quantize` packs the
layers of any module. Weights stay n-bit codes in memory: kernels decode them while they multiply.
A layer's codes, scales and the rest are uint8 buffers of its module, so that a state dict holds
them, copy and pickle take them along, and no conversion of types changes them. On a GPU the codes
lie in the order of its kernels, once; state dicts, pickles and `.cpu()` have the file's order.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

try:
    import torch
    from torch.autograd import forward_ad
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("nibblenet.torch needs PyTorch: pip install torch", name="torch") from error

from . import _core, _gpu, _model, _tables
from ._progress import Progress, shown

__all__ = ["Conv2d", "Linear", "PackedLayer", "Replacement", "quantize", "replace"]

_PARTS = ("codes", "scales", "zero_points", "block_ids", "codebook", "bias_bytes")
_ORDERED = ("codes", "block_ids")  # the parts whose order on a GPU is another
_ordering = threading.Lock()
_DEVICES = "the CPU and on NVIDIA's GPUs" if _core.has_cuda else "the CPU in this build"
_TYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.float16)}


def _numpy_works() -> bool:
    try:
        torch.empty(0).numpy()
    except RuntimeError:  # PyTorch before 2.3 with NumPy 2
        return False
    return True


_NUMPY = _numpy_works()


def _shared(tensor: torch.Tensor) -> Any:
    """What hands a tensor's memory over: NumPy's array, or the tensor itself, by DLPack, which takes longer."""
    if not _NUMPY or not tensor.is_cpu:
        return tensor
    try:
        return tensor.numpy()
    except RuntimeError as error:  # what torch.vmap and torch.export make of tensors
        raise _core.Error(f"packed layers read memory, which this tensor has not: {error}") from error


def _on_host(part: torch.Tensor | None) -> Any:
    """What hands over a copy of a part in the CPU's memory, or the part itself where it is there."""
    return None if part is None else _shared(part.cpu().contiguous())


def _placed(like: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor of the host beside another one."""
    return like.new_empty(values.shape, dtype=values.dtype).copy_(values)


def _result(x: torch.Tensor, shape: Sequence[int], strides: Sequence[int] | None = None) -> torch.Tensor:
    """Room for an output of x, on the CPU a tensor of no class of its own; in C order without strides."""
    if type(x) is not torch.Tensor and x.is_cpu:
        x = torch.empty(0, dtype=x.dtype, device="cpu")
    return x.new_empty(shape) if strides is None else x.new_empty_strided(shape, strides)


def _images_like(x: torch.Tensor, shape: tuple[int, int, int, int], channels_last: bool) -> torch.Tensor:
    """Room for images [N, C, H, W] beside x."""
    if not channels_last:
        return _result(x, shape)
    _, channels, height, width = shape
    return _result(x, shape, (channels * height * width, 1, channels * width, channels))


def _values(x: torch.Tensor) -> torch.Tensor:
    """Without autograd, and with the signs that a view may only note."""
    return x if not x.requires_grad and not x.is_neg() else x.detach().resolve_neg()


@functools.lru_cache(maxsize=1024)
def _form_of(scheme: str, shape: tuple[int, ...]) -> _core.PackedLayer:
    return _core.PackedLayer(scheme, list(shape))


class PackedLayer(torch.nn.Module):
    """What `Linear` and `Conv2d` have in common.

    scheme: like "nf4:4:block:16:f16". shape: [K, C] or [K, C, R, R] of the weights. The buffers are
    the parts of a packed file (docs/formats.md) as bytes: codes [K, stride], scales, zero_points,
    block_ids, codebook, and bias_bytes; those that the scheme or layer lacks are None.

    On a GPU, codes and block_ids are in the order of its kernels, and the codes' shape is another.
    Input is float32 or float16 there, and so is the output; products are of float16, sums float32.

    A call raises ValueError for an input that is not float32, on another device, of another shape,
    or that requires grad while grad is enabled; nibblenet.Error in training mode, while a tracer
    records, and in a forked process.
    """

    scheme: str
    shape: tuple[int, ...]
    _gpu_layer: _core.GpuLayer | None = None  # of codes in a GPU's order
    _held: tuple[list[tuple[str, torch.Tensor | None, int]], _core.Parts] | None = None  # of the last call

    def __init__(self, scheme: str, shape: Sequence[int], parts: Sequence[Any]) -> None:
        """parts: uint8 arrays as the buffers above, None for none. They are not copied."""
        super().__init__()
        self.scheme, self.shape = scheme, tuple(shape)
        for name, part in zip(_PARTS, parts, strict=True):
            self.register_buffer(name, None if part is None else torch.from_dlpack(part))
        self._form()

    @property
    def bias(self) -> torch.Tensor | None:
        """[K] float32, a view of bias_bytes; None without a bias."""
        return None if self.bias_bytes is None else self.bias_bytes.view(torch.float32)

    @property
    def resident(self) -> int:
        """Bytes that the layer's buffers occupy: those of the ledger (nibblenet.Size)."""
        return sum(part.nbytes for part in self._parts() if part is not None)

    def dequantize(self) -> torch.Tensor:
        """The weights in float32, a new tensor of `shape`."""
        if self._gpu_layer is None:
            return torch.from_dlpack(self._call("dequantized"))
        parts = {**self._buffers, **self._in_file_order()}
        values = self._form().dequantized([_on_host(parts[name]) for name in _PARTS])
        return _placed(self._buffers["codes"], torch.from_dlpack(values))

    def get_extra_state(self) -> torch.Tensor:
        """The scheme and shape as the bytes of a text: state dicts of other ones are refused."""
        return torch.tensor(list(self._title().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Raises ValueError for the state of a layer of another scheme or shape."""
        if not isinstance(state, torch.Tensor) or state.dtype != torch.uint8 or state.dim() != 1:
            raise ValueError("what it is of is no text: expected a tensor of bytes")
        title = bytes(state.tolist())
        if title != self._title().encode():
            raise ValueError(f"it is of {title.decode(errors='replace')}, this layer of {self._title()}")

    def _form(self) -> _core.PackedLayer:
        return _form_of(self.scheme, self.shape)

    def _title(self) -> str:
        return f"{self.scheme} {'x'.join(map(str, self.shape))}"

    def _parts(self) -> list[torch.Tensor | None]:
        return [self._buffers.get(name) for name in _PARTS]

    def _call(self, function: str, *arguments: Any) -> Any:
        """The form's function(*arguments, parts), with one line for parts that nobody can compute with."""
        try:
            return getattr(self._form(), function)(*arguments, self._held_parts())
        except TypeError:
            self._expect_parts(torch.device("cpu"))
            raise

    def _held_parts(self) -> _core.Parts:
        """The parts for the core, from the call before unless a buffer is another tensor or lies elsewhere."""
        buffers, held = self._buffers, self._held
        if held is not None:
            for name, part, address in held[0]:
                if buffers.get(name) is not part or (part is not None and part.data_ptr() != address):
                    break
            else:
                return held[1]
        tensors = self._parts()
        # Aliases: memory that a buffer lets go stays until the next call, and its address with it.
        parts = _core.Parts([part if part is None else _shared(part.detach()) for part in tensors])
        self._held = ([(name, part, 0 if part is None else part.data_ptr()) for name, part in zip(_PARTS, tensors)],
                      parts)
        return parts

    def _expect_parts(self, device: torch.device) -> None:
        """Raises for parts that are not dense bytes on this device."""
        for name, part in zip(_PARTS, self._parts()):
            if part is not None and part.device != device:
                raise ValueError(f"{name} is on {part.device}, not on {device}: call .to() on the whole layer")
            if part is not None and (part.dtype != torch.uint8 or not part.is_contiguous()):
                raise ValueError(f"{name}: expected dense uint8, got {part.dtype} {tuple(part.shape)}")

    def _multiply_on_gpu(self, product: str, y: torch.Tensor, x: torch.Tensor, *window: int) -> None:
        """Computes y from x by "linear" or "conv2d": dense tensors on the layer's GPU, images channels last."""
        layer = self._resident(x.device)
        if x.dtype != torch.float16:
            x = x.half()
        elif self._form().rotated:
            x = x.clone()  # it is rotated in place
        self._expect_parts(x.device)
        parts = [part if part is None else _gpu.shared(part) for part in self._parts()]
        return getattr(layer, product)(_gpu.shared(y), _gpu.shared(x), *window, parts, _gpu.stream_of(x))

    def _resident(self, device: torch.device) -> _core.GpuLayer:
        """The layer of codes in a GPU's order. Brings them into it where they have another."""
        if self._gpu_layer is None:
            with _ordering:  # threads may call a model
                if self._gpu_layer is None:
                    self._expect_parts(device)
                    layer, ordered = self._in_gpu_order()
                    self._place(ordered)
                    self._gpu_layer = layer
        return self._gpu_layer

    def _in_gpu_order(self) -> tuple[_core.GpuLayer, dict[str, torch.Tensor]]:
        """The layer on a GPU, and the parts that have an order of their own there, on the host."""
        layer, *ordered = self._form().for_gpu([_on_host(part) for part in self._parts()], "the layer")
        return layer, {name: torch.from_dlpack(part) for name, part in zip(_ORDERED, ordered) if part is not None}

    def _in_file_order(self) -> dict[str, torch.Tensor]:
        """These parts in the order of files, on the host, of a layer whose parts are in a GPU's."""
        ordered = self._gpu_layer.file_order([_on_host(part) for part in self._parts()])
        return {name: torch.from_dlpack(part) for name, part in zip(_ORDERED, ordered) if part is not None}

    def _place(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Puts parts of the host in place of those on the layer's device."""
        self._buffers.update({name: _placed(self._buffers[name], part) for name, part in parts.items()})

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        """Moves or converts the parts. On their way to a GPU or from it, the host orders them anew."""
        self._held = None
        before, layer_before = dict(self._buffers), self._gpu_layer
        codes = before["codes"]
        if codes is not None:
            target = fn(codes.new_empty(0)).device.type
            if target == "cuda" and codes.device.type == "cpu" and layer_before is None and _core.has_cuda:
                self._gpu_layer, ordered = self._in_gpu_order()
                self._buffers.update(ordered)
            elif target != "cuda" and layer_before is not None:
                self._buffers.update(self._in_file_order())
                self._gpu_layer = None
        try:
            return super()._apply(fn, recurse)
        except BaseException:  # a GPU's memory may be full
            self._buffers.update(before)
            self._gpu_layer = layer_before
            raise

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the order of files, which needs no GPU to be read."""
        state = self.__dict__.copy()
        state.pop("_held", None)
        if state.pop("_gpu_layer", None) is not None:
            state["_buffers"] = self._buffers.copy()
            state["_buffers"].update({name: _placed(self._buffers[name], part)
                                      for name, part in self._in_file_order().items()})
        return state

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._gpu_layer is not None:
            for name, part in self._in_file_order().items():
                destination[prefix + name] = _placed(self._buffers[name], part)

    def _expect(self, x: Any) -> None:
        """Raises for an input that no packed layer takes."""
        codes = self._buffers.get("codes")
        if (type(x) is torch.Tensor and x.is_cpu and x.dtype is torch.float32 and x.layout is torch.strided
                and not x.is_nested and not x.requires_grad and codes is not None and codes.is_cpu and not self.training
                and forward_ad._current_level < 0 and not torch.jit.is_tracing()):
            return  # the usual ones need no look
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"expected a tensor, got {type(x).__name__}")
        if self.training:
            raise _core.Error("packed layers do not train: call .eval() on the model first")
        device = x.device if codes is None else codes.device
        if x.device != device:
            raise ValueError(f"the input is on {x.device}, codes is on {device}: call .to() on one of them")
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"the input is on {device}: packed layers compute on {_DEVICES}")
        if x.dtype not in _TYPES[device.type] or x.layout != torch.strided or x.is_nested:
            raise ValueError(f"expected a dense float32 tensor{'' if device.type == 'cpu' else ', or a float16 one'}, "
                             f"got {x.dtype} ({'nested' if x.is_nested else x.layout})")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("the input requires grad, and packed layers have no gradients: call the model under "
                             "torch.no_grad()")
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
            raise ValueError("the input has a tangent, and packed layers have no gradients")
        if torch.jit.is_tracing():
            raise _core.Error("packed layers cannot be traced: a trace would hold their output as a constant")

    def _expect_state(self, parts: Mapping[str, Any], title: Any) -> None:
        """Raises for parts that are not a layer's of this form, or that decode to no numbers."""
        if title is not None:
            self.set_extra_state(title)
        own = dict(zip(_PARTS, self._parts()))
        for name, part in own.items():
            if (part is None) != (name not in parts):
                raise ValueError(f"the state has {'no' if part is not None else 'unexpected'} {name}")
            if part is None:
                continue
            if not isinstance(parts[name], torch.Tensor):
                raise ValueError(f"{name}: expected a tensor, got {type(parts[name]).__name__}")
            if parts[name].dtype != torch.uint8:
                raise ValueError(f"{name}: expected uint8, got {parts[name].dtype}")
            if parts[name].shape != part.shape:
                raise ValueError(f"{name}: expected shape {list(part.shape)}, got {list(parts[name].shape)}")
        if not any(part.is_meta for part in parts.values()):
            whole = [_on_host(parts.get(name)) for name in _PARTS]
            self._form().validate(whole, "what it holds")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool,
                              missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str]) -> None:
        """Takes the state of a whole layer, or leaves all as it is."""
        found = {name: state_dict[prefix + name] for name in _PARTS if prefix + name in state_dict}
        title = state_dict.get(f"{prefix}_extra_state")
        on_gpu = self._gpu_layer is not None and bool(found)
        if on_gpu:  # state dicts have the file's order
            self._place(self._in_file_order())
            self._gpu_layer = None
        try:
            if found or title is not None:
                try:
                    self._expect_state(found, title)
                except (ValueError, TypeError, AttributeError, _core.Error) as error:
                    error_msgs.append(f"{prefix.rstrip('.') or 'the layer'}: {error}")
                    return
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                                          error_msgs)
        finally:
            if on_gpu and (device := self._buffers["codes"].device).type == "cuda":
                self._resident(device)


class Linear(PackedLayer):
    """y[..., K] = x[..., C] w[K, C]^T + bias[K], like torch.nn.Linear, with packed weights."""

    @staticmethod
    def of(layer: torch.nn.Linear, scheme: str, name: str = "layer") -> Linear:
        """Packs a torch.nn.Linear by a scheme like "linear:4:channel". `name` is for messages.

        Raises ValueError for a layer that does not fit, nibblenet.Error for NaN and infinities.
        """
        _expect_fit(layer, torch.nn.Linear)
        return _beside(layer, Linear(scheme, layer.weight.shape, _packed_parts(layer, scheme, name)))

    @property
    def in_features(self) -> int:
        """C."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """K."""
        return self.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., C], float32, on a GPU also float16. Read in place if it is contiguous, else copied once."""
        self._expect(x)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected an input [..., {self.in_features}], got {list(x.shape)}")
        y = _result(x, (*x.shape[:-1], self.out_features))
        if y.numel() > 0:
            rows, results = _values(x), y
            if x.dim() != 2:
                rows, results = rows.reshape(-1, self.in_features), y.view(-1, self.out_features)
            rows = rows.contiguous()
            if rows.is_cpu:
                self._call("linear", _shared(results), _shared(rows))
            else:
                self._multiply_on_gpu("linear", results, rows)
        return y

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.scheme}, bias={self.bias_bytes is not None}"


class Conv2d(PackedLayer):
    """y[N, K, P, Q] = conv(x[N, C, H, W], w[K, C, R, R]) + bias[K], like torch.nn.Conv2d, with packed weights."""

    stride: int
    padding: int

    def __init__(self, scheme: str, shape: Sequence[int], parts: Sequence[Any], stride: int = 1,
                 padding: int = 0) -> None:
        """stride, padding: in pixels, for both directions. Raises ValueError for others than whole numbers."""
        stride = _model._integer(stride, "stride", 1, 1 << 20)
        padding = _model._integer(padding, "padding", 0, 1 << 20)
        super().__init__(scheme, shape, parts)
        self.stride, self.padding = stride, padding

    @staticmethod
    def of(layer: torch.nn.Conv2d, scheme: str, name: str = "layer") -> Conv2d:
        """Packs a torch.nn.Conv2d, as Linear.of does."""
        _expect_fit(layer, torch.nn.Conv2d)
        return _beside(layer, Conv2d(scheme, layer.weight.shape, _packed_parts(layer, scheme, name), *_window(layer)))

    @property
    def in_channels(self) -> int:
        """C."""
        return self.shape[1]

    @property
    def out_channels(self) -> int:
        """K."""
        return self.shape[0]

    @property
    def kernel_size(self) -> int:
        """R."""
        return self.shape[3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [N, C, H, W] or [C, H, W], float32, on a GPU also float16. The output is laid out as the input is.

        Channels-last input is read in place. Any other is copied once, and so is its output.
        """
        self._expect(x)
        dimensions, (channels_out, channels, _, size) = x.dim(), self.shape
        if dimensions not in (3, 4) or x.shape[-3] != channels:
            raise ValueError(f"expected an input [N, {channels}, H, W], got {list(x.shape)}")
        images = _values(x) if dimensions == 4 else _values(x).unsqueeze(0)
        count, _, height, width = images.shape
        room = 2 * self.padding - size
        if height + room < 0 or width + room < 0:
            raise ValueError(f"an input of {height} x {width} pixels is smaller than the kernel, "
                             f"{size} x {size} with padding {self.padding}")
        height, width = (height + room) // self.stride + 1, (width + room) // self.stride + 1
        pixels = _shared(images)
        last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        y = _images_like(x, (count, channels_out, height, width), last)
        if count > 0:
            if images.is_cpu:
                self._call("conv2d", _shared(y), pixels, self.stride, self.padding)
            else:
                self._convolve_on_gpu(y, images)
        return y if dimensions == 4 else y.squeeze(0)

    def _convolve_on_gpu(self, y: torch.Tensor, images: torch.Tensor) -> None:
        """Computes y from images, both [N, C, H, W]. The GPU's kernels have channels last."""
        pixels = images.permute(0, 2, 3, 1).contiguous()
        results = y.permute(0, 2, 3, 1)
        if results.is_contiguous():
            self._multiply_on_gpu("conv2d", results, pixels, self.stride, self.padding)
        else:
            results = _result(images, results.shape)
            self._multiply_on_gpu("conv2d", results, pixels, self.stride, self.padding)
            y.copy_(results.permute(0, 3, 1, 2))

    def extra_repr(self) -> str:
        return (f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
                f"padding={self.padding}, {self.scheme}, bias={self.bias_bytes is not None}")


@dataclass(frozen=True)
class Replacement:
    """What `replace` or `quantize` did to a model.

    replaced: the scheme of each packed layer, by its name in the model. stayed: why each other
    layer with weights is as it was. unused: names of packed weights that have no layer. before,
    after: bytes of the replaced layers' weights and biases, in float32 and packed.
    """

    replaced: dict[str, str]
    stayed: dict[str, str]
    unused: list[str]
    before: int
    after: int

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = [[name, "packed", scheme] for name, scheme in self.replaced.items()]
        rows += [[name, "stays", reason] for name, reason in self.stayed.items()]
        rows += [[name, "not used", "the model has no layer of this name"] for name in self.unused]
        return ["layer", "", "scheme or reason"], rows

    def _total(self) -> str:
        return (f"{len(self.replaced)} layers packed, {_tables.count(self.before)} B -> "
                f"{_tables.count(self.after)} B; {len(self.stayed)} stay")

    def __str__(self) -> str:
        return f"{_tables.text(*self._table())}\n{self._total()}"

    def _repr_html_(self) -> str:
        return _tables.as_html(*self._table(), caption=self._total())


def _expect_fit(layer: Any, kind: type[torch.nn.Module]) -> None:
    if not isinstance(layer, kind):
        raise ValueError(f"expected a torch.nn.{kind.__name__}, got {type(layer).__name__}")
    if reason := _misfit(layer):
        raise ValueError(f"the layer {reason}")


def _misfit(layer: torch.nn.Module, values: bool = True) -> str | None:
    """Why no packed layer can stand for this one; None where one can. values: its weights are read."""
    kind = type(layer)
    if kind not in (torch.nn.Linear, torch.nn.Conv2d):
        return f"is a {kind.__name__}: only torch.nn.Linear and Conv2d are packed"
    if "forward" in vars(layer):
        return "has a forward of its own"
    if any(getattr(layer, hooks, None) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
                                                     "_backward_pre_hooks")):
        return "has hooks, which a packed layer would lose"
    if not isinstance(layer._parameters.get("weight"), torch.nn.Parameter):
        return "has no weight parameter"
    for name, part in layer._parameters.items():
        if part is None:
            continue
        if type(part.data) is not torch.Tensor or part.layout != torch.strided:
            return f"has a {name} that is no dense tensor"
        if part.device.type not in ("cpu", "cuda" if _core.has_cuda else "cpu", "cpu" if values else "meta"):
            return f"has its {name} on {part.device}; packed layers compute on {_DEVICES}"
        if part.dtype not in _TYPES.get(part.device.type, (torch.float32,)):
            return f"has a {name} of {part.dtype}; packed layers compute in float32"
    if layer.weight.numel() == 0:
        return "has no weights"
    return _odd_window(layer) if kind is torch.nn.Conv2d else None


def _odd_window(layer: torch.nn.Conv2d) -> str | None:
    """Why its geometry is none of packed convolutions; None where it is."""
    for name, value, ours in (("groups", layer.groups, 1), ("dilation", layer.dilation, (1, 1)),
                              ("padding_mode", layer.padding_mode, "zeros")):
        if value != ours:
            return f"has {name} {value}; packed convolutions have {ours}"
    height, width = layer.kernel_size
    if height != width:
        return f"has a kernel of {height} x {width}; packed convolutions have square ones"
    if layer.padding == "same" and height % 2 == 0:
        return f"pads its kernel of {height} x {width} on one side more than on the other"
    for name, value in (("stride", layer.stride), ("padding", layer.padding)):
        if not isinstance(value, str) and value[0] != value[1]:
            return f"has {name} {value}; packed convolutions have the same in both directions"
    return None


def _window(layer: torch.nn.Conv2d) -> tuple[int, int]:
    """Stride and padding of a convolution that fits."""
    if isinstance(layer.padding, str):
        return layer.stride[0], layer.kernel_size[0] // 2 if layer.padding == "same" else 0
    return layer.stride[0], layer.padding[0]


def _packed_parts(layer: torch.nn.Module, scheme: str, name: str) -> list[Any]:
    weight, bias = (None if part is None else part.detach().cpu().float().contiguous()
                    for part in (layer.weight, layer.bias))
    return _core.pack_layer(weight, bias, scheme, name)


def _beside(layer: torch.nn.Module, packed: PackedLayer) -> PackedLayer:
    """The packed layer, on the GPU where the float one is on one."""
    return packed.to(layer.weight.device) if layer.weight.device.type == "cuda" else packed


@dataclass(frozen=True)
class _Layer:
    """A module with weights of its own, and where it hangs: every parent, with the key there."""

    module: torch.nn.Module
    places: list[tuple[torch.nn.Module, str]]

    def reader(self) -> str | None:
        """A parent that reads the weight itself, past the layer's forward."""
        for parent, _ in self.places:
            if isinstance(parent, (torch.nn.TransformerEncoderLayer, torch.nn.MultiheadAttention)):
                return type(parent).__name__
        return None

    def put(self, layer: PackedLayer) -> None:
        layer.train(self.module.training)
        for parent, key in self.places:
            parent._modules[key] = layer


def _layers(model: torch.nn.Module) -> dict[str, _Layer]:
    """Modules of the model that own weights, of two dimensions or more, by their first name."""
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (torch.nn.Linear, torch.nn.Conv2d)):
        raise ValueError(f"a {type(model).__name__} cannot be replaced in place: pass a model that holds it, or pack "
                         f"it by nibblenet.torch.{type(model).__name__}.of")
    found: dict[str, _Layer] = {}
    by_module: dict[int, _Layer] = {}
    for path, parent in model.named_modules():
        for key, module in parent._modules.items():
            if module is None or not _owns_weights(module):
                continue
            if id(module) not in by_module:
                by_module[id(module)] = found[f"{path}.{key}" if path else key] = _Layer(module, [])
            by_module[id(module)].places.append((parent, key))
    return found


def _owns_weights(module: torch.nn.Module) -> bool:
    if isinstance(module, PackedLayer):
        return False
    return isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) or any(
        part is not None and not isinstance(part, torch.nn.UninitializedParameter) and part.dim() > 1
        for part in module._parameters.values())


def _put_all(made: Mapping[str, PackedLayer], layers: Mapping[str, _Layer], stayed: dict[str, str],
             unused: list[str]) -> Replacement:
    """Puts the packed layers in place, and says what was done."""
    if not made:
        why = next((f"; {name} {reason}" for name, reason in stayed.items()), "")
        raise ValueError(f"no layer of the model can be packed{why}")
    before = sum(part.nbytes for name in made for part in layers[name].module._parameters.values()
                 if part is not None)
    for name, layer in made.items():
        layers[name].put(layer)
    return Replacement({name: layer.scheme for name, layer in made.items()}, stayed, unused, before,
                       sum(layer.resident for layer in made.values()))


def replace(model: torch.nn.Module, packed: _model.PackedModel | _model.Path) -> Replacement:
    """Puts a packed model's layers in place of a PyTorch model's, and says which layers stayed and why.

    Layers go by the names of `nibblenet.load`: those of torchvision's model, with or without
    prefixes such as "module." or "backbone.". A layer fits that has the same shape, stride,
    padding and bias; the values it had do not matter, and it may be on the meta device. The packed
    layer of one on a GPU is there, too. packed: a
    PackedModel or its file; afterwards it may be closed. Nothing changes when an error is raised.

    Raises ValueError where nothing fits, where two networks in the model have the names, and for
    batch norms, which packed models have folded into their convolutions.
    """
    layers = _layers(model)
    if isinstance(packed, (str, os.PathLike)):
        packed = _model.load(packed)
    if not isinstance(packed, _model.PackedModel):
        raise ValueError(f"packed: expected a nibblenet.PackedModel, got {type(packed).__name__}")
    packed_layers = _core.packed_layers(packed._core)
    names = _names_of(model, {layer.split(".")[0] for layer, *_ in packed_layers})
    stayed = {name: "the packed model has no layer of this name" for name in layers}
    unused: list[str] = []
    made: dict[str, PackedLayer] = {}
    for layer, scheme, shape, window in packed_layers:
        name = names.get(layer)
        if name not in layers:
            unused.append(layer)
        elif reason := _mismatch(layers[name], scheme, shape, window):
            stayed[name] = reason
        else:
            parts = _core.layer_parts(packed._core, layer)
            made[name] = _beside(layers[name].module, Conv2d(scheme, shape, parts, *window) if window
                                 else Linear(scheme, shape, parts))
            del stayed[name]
    return _put_all(made, layers, stayed, unused)


def _names_of(model: torch.nn.Module, stems: set[str]) -> dict[str, str]:
    """The names of the model's modules by those that packed models have: these begin with the stems."""
    owners = {name: module for name, module in model.named_modules()
              if name and isinstance(module._parameters.get("weight"), torch.nn.Parameter)}
    try:
        adopted = _core.adopted_names([f"{name}.weight" for name in owners])
    except _core.Error:
        raise ValueError("the model holds several networks of these names: pass one of them, like "
                         "replace(model.student, packed)") from None
    names = {canonical.removesuffix(".weight"): name.removesuffix(".weight") for canonical, name in adopted
             if canonical.split(".")[0] in stems}
    for name in names.values():
        if isinstance(owners[name], torch.nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"{name} is a batch norm, which packed models have folded into the convolution in front: "
                             f"take the model without batch norms, like torchvision's vgg16 for vgg16_bn")
    return names


def _mismatch(layer: _Layer, scheme: str, shape: list[int], window: list[int]) -> str | None:
    """Why a packed layer does not fit; None where it does."""
    module = layer.module
    if reader := layer.reader():
        return f"is read by {reader} itself"
    if reason := _misfit(module, values=False):
        return reason
    if list(module.weight.shape) != shape:
        return f"has a weight {list(module.weight.shape)}, the packed one is {shape}"
    if window and _window(module) != tuple(window):
        return "has stride {} and padding {}, the packed one {} and {}".format(*_window(module), *window)
    if module.bias is None:
        return "has no bias, the packed one has"
    return None if scheme else "is float32 in the packed model, too"


def quantize(module: torch.nn.Module, bits: float | None = None, method: str | None = None,
             granularity: str | None = None, *, scale: str | None = None, scale_sign: str | None = None,
             zero_point: bool = False, rotate: bool = False, layers: Mapping[str, str] | None = None,
             progress: bool | Progress | None = None) -> Replacement:
    """Packs every Linear and Conv2d of a module that fits, in place, and says which stayed and why.

    The options are those of `nibblenet.pack`, and so are the codes. bits: 2 to 8, by default 4; trellis
    has 0.5 to 4. rotate: rotates the inputs of layers where it can; those of a Linear as they lie, where
    `nibblenet.pack` knows which of them are the pixels of one channel. layers: schemes of some layers, by
    patterns of their names in the module. A layer fits that is float32 on the CPU or on a GPU, where it
    may be float16, and as a convolution has square kernels, one stride and padding, and neither groups
    nor dilation. Nothing changes when an error is raised.

    Raises ValueError for what is no option and where nothing fits, nibblenet.Error for NaN and
    infinities.
    """
    found = _layers(module)
    stayed, fitting = {}, {}
    for name, layer in found.items():
        reader = layer.reader()
        if reason := f"is read by {reader} itself" if reader else _misfit(layer.module):
            stayed[name] = reason
        else:
            fitting[name] = layer.module
    options = _model._options({"bits": bits, "method": method, "granularity": granularity, "scale": scale,
                               "scale-sign": scale_sign}, {"zero-point": zero_point, "rotate": rotate}, layers)
    schemes = _core.choose_schemes(options, [(f"{name}.weight", list(layer.weight.shape))
                                             for name, layer in fitting.items()]) if fitting else []
    made: dict[str, PackedLayer] = {}
    with shown(progress) as report:
        for (name, layer), scheme in zip(fitting.items(), schemes):
            if report:
                report("packing", "layers", len(made), len(fitting))
            kind = Conv2d if isinstance(layer, torch.nn.Conv2d) else Linear
            made[name] = kind.of(layer, scheme, name)
    return _put_all(made, found, stayed, [])
