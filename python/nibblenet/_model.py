"""Models, packed or float, and what is measured of them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, overload

import numpy as np

from . import _arrays, _core, _gpu, _tables
from ._progress import Progress, shown

Path: TypeAlias = str | os.PathLike[str]
Source: TypeAlias = "Model | Path | Mapping[str, Any]"


@dataclass(frozen=True)
class Size:
    """The ledger of a model's bytes: estimated by the formula, in the file, resident in memory.

    `layers` has a dict a layer: name, scheme, weights, groups, bits_per_weight, estimated (codes,
    scales, total), file, resident (codes, scales, …, total). `file` is 0 before the model is saved.
    """

    weights: int
    bits_per_weight: float
    estimated: float
    file: int
    resident: int
    header: int
    layers: list[dict[str, Any]] = field(repr=False)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        def line(name: str, scheme: str, weights: int, bits: float, sizes: tuple[float, int, int]) -> list[str]:
            estimated, file, resident = sizes
            more = f"{100 * (resident - estimated) / estimated:+.3f} %" if estimated else "-"
            return [name, scheme, _tables.count(weights), f"{bits:.3f}", _tables.count(estimated),
                    _tables.count(file) if self.file else "-", _tables.count(resident), more]

        rows = [line(row["name"], row["scheme"], row["weights"], row["bits_per_weight"],
                     (row["estimated"]["total"], row["file"], row["resident"]["total"])) for row in self.layers]
        rows.append(line("total", "", self.weights, self.bits_per_weight, (self.estimated, self.file, self.resident)))
        return ["layer", "scheme", "weights", "bits/weight", "estimated B", "file B", "resident B",
                "resident - estimated"], rows

    def __str__(self) -> str:
        return _tables.text(*self._table())

    def _repr_html_(self) -> str:
        return _tables.as_html(*self._table(), caption="bytes by layer")


@dataclass(frozen=True)
class Evaluation:
    """A model's results on labelled images.

    logits [images, classes] float32 and labels [images] int64 are in the order of the data, labels
    as the model numbers its classes. interval: 95 % (Wilson). loss: mean cross-entropy.
    """

    accuracy: float
    interval: tuple[float, float]
    loss: float
    correct: int
    images: int
    seconds: float
    data: str
    logits: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)

    @property
    def right(self) -> np.ndarray:
        """[images] bool: which images the model gets right."""
        return self.logits.argmax(axis=1) == self.labels

    def __str__(self) -> str:
        low, high = self.interval
        return (f"{100 * self.accuracy:.2f} % of {self.images} images right (95 % interval {100 * low:.2f} to "
                f"{100 * high:.2f} %), cross-entropy {self.loss:.5f}, {self.data}")

    def compare(self, other: Evaluation) -> dict[str, Any]:
        """The paired comparison with a result on the same images.

        Keys: difference (of accuracy), only_this and only_other (images that one of the two gets
        right), mcnemar_p (two-sided, exact). Raises ValueError for other images.
        """
        if not np.array_equal(self.labels, other.labels):
            raise ValueError("the two results are of different images")
        only_this = int((self.right & ~other.right).sum())
        only_other = int((other.right & ~self.right).sum())
        return {"difference": self.accuracy - other.accuracy, "only_this": only_this, "only_other": only_other,
                "mcnemar_p": _core.mcnemar_p(only_this, only_other)}


class Model:
    """A network, float or packed, from `load`, `pack` or `Model.of`.

    Calls may come from any thread; they run one after the other. Ctrl-C stops a long one. The first
    call that computes makes the network, whose bytes `size` counts as resident. On the CPU, in
    float32, it holds the packed codes alone; other parameters stay on the host, too, for `save`. A
    with statement closes the model at its end.

    report: what `pack` or `simulate` did, else empty.
    """

    report: dict[str, Any] = {}
    _simulated = False
    _classes: int | None = None

    def __init__(self, core: _core.Model) -> None:
        """For `load`, `pack` and `Model.of` only."""
        if not isinstance(core, _core.Model):
            raise ValueError("make models by nibblenet.load, nibblenet.pack or Model.of")
        self._core = core

    @staticmethod
    def of(source: Source, device: str = "cpu", *, threads: int = 0, precision: str | None = None, key: str | None = None,
           strict: bool = False) -> Model:
        """The model of a file (`load`) or of a state dict: names and float32 arrays or tensors.

        Names are torchvision's, or those of a known network behind prefixes. A Model is returned as
        it is. Raises ValueError for other values, nibblenet.Error where they are no network's
        parameters.
        """
        if isinstance(source, Model):
            return source
        where = _device(device), _integer(threads, "threads", 0, 1024), _precision(precision)
        if isinstance(source, Mapping):
            if key is not None:
                raise ValueError("key belongs to files; take the wanted weights out of the state dict")
            core = _core.Model.of_arrays(_arrays.state_dict(source), *where)
        elif hasattr(source, "state_dict"):
            raise ValueError(f"model: expected a file, a state dict or a nibblenet.Model, got {type(source).__name__}; "
                             f"pass its .state_dict()")
        else:
            core = _core.Model.load(_path(source, "model"), _key(key), bool(strict), *where)
        return _wrap(core)

    @property
    def size(self) -> Size:
        """The ledger."""
        found = json.loads(self._core.size())
        return Size(found["weights"], found["bits_per_weight"], found["estimated"]["total"], found["file"],
                    found["resident"]["total"], found["header"], found["layers"])

    @property
    def precision(self) -> dict[str, Any]:
        """What it computes in, as the tools' JSON: precision, divergence (from float32, in nats) and
        divergence_images, None where they were not measured; layer_precisions by layer; and notes,
        lines for people.

        Raises ValueError where int8 was asked for by its name and a layer cannot compute in it.
        """
        return json.loads(self._core.precision())

    @property
    def info(self) -> dict[str, Any]:
        """network, classes (their names), image_size, packed, device, metadata."""
        return json.loads(self._core.description())

    @overload
    def __call__(self, images: np.ndarray, batch: int = 128) -> np.ndarray: ...

    @overload
    def __call__(self, images: Any, batch: int = 128) -> Any: ...

    def __call__(self, images: Any, batch: int = 128) -> Any:
        """Logits [N, classes], float32.

        images: uint8 [N, height, width, 3] is RGB, and is resized, cropped and normalised as the
        tools do; float32 [N, 3, S, S] is normalised already. A NumPy array, or a CPU tensor by
        DLPack. uint8 in C order and float32 in channels-last order are read in place; others are
        copied once. `batch` images at a time: results depend on it to float rounding.

        Returns a NumPy array; for a PyTorch tensor on the model's GPU a tensor there, in the order
        of PyTorch's current stream, without waiting for it.

        Raises ValueError for other types and shapes, for tensors that require grad, and for those
        of a GPU on which the model is not.
        """
        if not isinstance(images, np.ndarray) and (gpu := _gpu.number_of(images)) is not None:
            if self._classes is None:
                self._classes = self._core.classes_on(gpu)
            return _gpu.logits(self._core, images, self._classes, _integer(batch, "batch", 1, 65536))
        found = _arrays.array(images, "images")
        if found.ndim != 4:
            raise ValueError(f"images: expected 4 dimensions, got shape {found.shape}")
        if found.dtype == _arrays.UINT8:
            ready = _arrays.dense(found)
        elif found.dtype == _arrays.FLOAT32:
            ready = found if found.flags.aligned else found.copy()
        else:
            raise ValueError(f"images: expected uint8 [N, H, W, 3] or float32 [N, 3, S, S], got {found.dtype}")
        return self._core.logits(ready, _integer(batch, "batch", 1, 65536))

    def floats(self) -> Model:
        """A float32 copy, as tools/export makes one of a packed model."""
        return _wrap(self._core.float_copy())

    def dequantize(self) -> dict[str, np.ndarray]:
        """Every parameter in float32, by name: a state dict for torch.from_numpy."""
        return self._core.dequantized()

    def save(self, path: Path, compress: bool | None = None, progress: bool | Progress | None = None) -> None:
        """Writes a safetensors file, the bytes that tools/pack writes. Then size.file counts them.

        compress: entropy-codes the codes (rANS, no loss); None: as `pack` was told, or as in the
        file that was loaded. Raises OSError where it cannot write, ValueError where the path holds
        another kind of file, nibblenet.Error where the file misses pack's target.
        """
        with shown(progress) as report:
            self._core.save(_path(path, "path"), None if compress is None else bool(compress), report)

    def close(self) -> None:
        """Frees the memory. Later calls raise nibblenet.Error."""
        self._core.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Models are neither pickled nor deep-copied: TypeError."""
        raise TypeError("models are not pickled or copied: save one and load it, or pass on its dequantize()")

    def __copy__(self) -> Model:
        """The same model by another name."""
        return type(self)(self._core)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PackedModel(Model):
    """A model whose weights are n-bit codes."""


def _wrap(core: _core.Model) -> Model:
    return (PackedModel if json.loads(core.description())["packed"] else Model)(core)


def _path(path: Any, name: str) -> str:
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise ValueError(f"{name}: expected a path, got {type(path).__name__}") from None
    if not text or "\0" in text:
        raise ValueError(f"{name}: {text!r} is no path")
    return text


def _integer(value: Any, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{name} {value!r}: expected a whole number from {least} to {most}")
    return int(value)


def _one_of(value: Any, name: str, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} {value!r}: expected {', '.join(known[:-1])} or {known[-1]}")
    return value


def _device(device: Any) -> str:
    return _one_of(device, "device", ("cpu", "cuda", "cudnn", "auto"))


def _precision(precision: Any) -> str:
    """The core's text: empty for None."""
    names = ("auto", "float32", "float16", "bfloat16", "int8")
    return "" if precision is None else _one_of(precision, "precision", names)


def _key(key: Any) -> str:
    if key is None:
        return ""
    if not isinstance(key, str) or not key or "\0" in key:
        raise ValueError(f"key {key!r}: expected the name of the weights to take")
    return key


def load(path: Path, device: str = "cpu", *, threads: int = 0, precision: str | None = None, key: str | None = None,
         strict: bool = False) -> Model:
    """Reads a model: safetensors, packed or float, or a PyTorch file (.pth), which runs nothing.

    Returns a PackedModel where weights are packed. device: cpu, cuda, auto, or cudnn to compare
    with. threads of the CPU, 0: OMP_NUM_THREADS, else the cores that the process may use.
    precision: float32; float16, on a GPU; bfloat16 or int8, on the CPU; auto, on the CPU the fastest
    whose divergence from float32, which `pack` measured, is at most 0.0005, on a GPU float16; None:
    float32 on the CPU, float16 on a GPU. key: the weights to take from a file of another program
    that holds several models. strict: refuse a .pth whose checksums do not match.

    Raises OSError for a file that cannot be read, nibblenet.Error for one that is no model.
    """
    return Model.of(_path(path, "path"), device, threads=threads, precision=precision, key=key, strict=strict)


def _option(name: str, value: Any) -> list[str]:
    """A tool's option: nothing for None."""
    if value is None:
        return []
    text = value if isinstance(value, str) else repr(value) if isinstance(value, (int, float)) else os.fsdecode(value)
    if not text or "\0" in text:
        raise ValueError(f"{name}: {text!r} is no value")
    return [f"--{name}={text}"]


def _options(values: Mapping[str, Any], flags: Mapping[str, bool], layers: Mapping[str, str] | None) -> list[str]:
    """Options of tools/pack by their names there, without those that are None or False."""
    arguments: list[str] = []
    for name, value in values.items():
        try:
            arguments += _option(name, value)
        except TypeError:
            raise ValueError(f"{name}: {value!r} is no value") from None
    arguments += [f"--{name}" for name, given in flags.items() if given]
    if layers is not None and not isinstance(layers, Mapping):
        raise ValueError(f"layers: expected a dict of patterns and schemes, got {type(layers).__name__}")
    for pattern, scheme in (layers or {}).items():
        arguments += _option("layer", f"{pattern}={scheme}")
    return arguments


def pack(source: Source, bits: float | None = None, method: str | None = None, granularity: str | None = None, *,
         scale: str | None = None, scale_sign: str | None = None, zero_point: bool = False, rotate: bool = False,
         layers: Mapping[str, str] | None = None, calibrate: Path | None = None, calibration: Path | None = None,
         calibration_images: int | None = None, calibration_seed: int | None = None, rounding: str | None = None,
         ranges: str | Iterable[str] | None = None, column_order: str | None = None, passes: int | None = None,
         rate_weight: float | None = None, save_calibration: Path | None = None, target_bits: float | None = None,
         target_file: float | None = None, target_resident: float | None = None, target_size: float | None = None,
         max_loss: float | None = None, target_images: int | None = None, measurements: Path | None = None,
         data: Path | None = None, skip_unreadable: bool = False,
         compress: bool = False, key: str | None = None, strict: bool = False, device: str = "cpu", threads: int = 0,
         progress: bool | Progress | None = None) -> PackedModel:
    """Turns float weights into n-bit codes, as tools/pack does, by its options and defaults.

    source: a state dict (names and float32 arrays or CPU tensors), a file, or a float Model, which
    is copied. bits: 2 to 8, by default 4; trellis has 0.5 to 4. method: linear, nf4, kmeans, … granularity: tensor,
    channel, row, block:N, tile:RxC, sorted[:B]. layers: schemes of some layers, by pattern, like
    {"features.*": "linear:8:channel"}. calibrate: a data set; then GPTQ chooses the codes.

    Targets choose each layer's scheme, on training images of `data`, by default those of calibrate:
    target_bits a weight, target_file and target_resident (in memory) in MB (10^6 bytes), which may
    be given together, max_loss in points of accuracy. target_size is an old name of target_file.
    With measurements, a file, a stopped call goes on where it was, and so does one with other targets.
    compress is for `save`; target_file implies it unless method is given.
    key, strict and threads are those of `load`, of a source that is a file. The other options are
    those of `tools/pack --help`, whose files have the same bytes.

    Raises ValueError for what is no option and targets that cannot be met, nibblenet.Error for NaN
    and infinities.
    """
    if target_size is not None and target_file is not None:
        raise ValueError("target_size is an old name of target_file: give one of them")
    arguments = _options(
        {"bits": bits, "method": method, "granularity": granularity, "scale": scale, "scale-sign": scale_sign,
         "calibrate": calibrate, "calibration": calibration, "calibration-images": calibration_images,
         "calibration-seed": calibration_seed, "rounding": rounding, "column-order": column_order, "passes": passes,
         "rate-weight": rate_weight, "save-calibration": save_calibration, "target-bits": target_bits,
         "target-file": target_size if target_file is None else target_file, "target-resident": target_resident,
         "max-loss": max_loss, "target-images": target_images, "measurements": measurements,
         "data": data},
        {"zero-point": zero_point, "rotate": rotate, "skip-unreadable": skip_unreadable, "compress": compress}, layers)
    for text in [ranges] if isinstance(ranges, str) else ranges or []:
        arguments += _option("range", str(text))
    core = _float_core(source, device, threads=threads, key=key, strict=strict)
    with shown(progress) as report:
        done = json.loads(core.pack(arguments, report))
    packed = PackedModel(core)
    packed.report = done
    return packed


def _float_core(source: Source, device: str, **options: Any) -> _core.Model:
    """A float model that may be changed."""
    model = Model.of(source, device, **options)
    if model.info["packed"]:
        raise ValueError("the model is packed already: take the float model it came from, or model.floats()")
    return model._core.float_copy() if model is source else model._core


def simulate(source: Source, scheme: str, repair: str | Iterable[str] | None = None, *, device: str = "cpu",
             threads: int = 0, key: str | None = None, strict: bool = False,
             progress: bool | Progress | None = None) -> Model:
    """Rounds float weights in float32 as the original notebooks do, defects included, bit for bit.

    scheme: simulated-linear, simulated-linear-row, simulated-fp8, simulated-dynamic-tree[:BITS] or
    simulated-stable-embedding. repair: defects of the two linear ones to repair: overflow,
    truncation, range, zero-point, precision or all. source: as `pack` takes it.

    Returns a float model: such weights have float32's size. Its report has claimed_bits;
    needed_bits, which number the most different values in a row (distinct_values); mse, mae and
    snr_db against the source; layers; of the dynamic tree exponent_counts. Raises ValueError for
    other names.
    """
    if not isinstance(scheme, str):
        raise ValueError(f"scheme {scheme!r}: expected a name like simulated-dynamic-tree:4")
    repairs = "" if repair is None else repair if isinstance(repair, str) else ",".join(map(str, repair))
    core = _float_core(source, device, threads=threads, key=key, strict=strict)
    with shown(progress) as report:
        done = json.loads(core.simulate(scheme, repairs, report))
    model = _wrap(core)
    model.report, model._simulated = done, True
    return model


def evaluate(model: Source, data: Any = None, *, split: str = "test", limit: int = 0, batch: int = 128,
             image_size: int = 0, skip_unreadable: bool = False, fold_first: bool = False,
             progress: bool | Progress | None = None) -> Evaluation:
    """Measures a model on labelled images, as tools/eval does.

    model: a Model, a file or a state dict. data: a path of a data set (CIFAR-10, or an image
    folder), or a pair of images, uint8 [N, height, width, 3], and labels, [N] whole numbers as the
    model numbers its classes. None: NIBBLENET_DATA, else data/ in the current folder, else CIFAR-10
    is downloaded there, else (offline) a stand-in is drawn, of which a warning tells. split: test;
    train; or a part of the training images: validation, the tenth of each class that finetune
    --validation holds out, or fitting, the others; limit: so many images of the data set, as many
    of each class, 0: all; image_size: pixels of the network's input, 0: what the model was trained
    with; skip_unreadable: leave out pictures that cannot be read; fold_first: fold the first
    convolution with the resize.

    Raises ValueError for other arguments, nibblenet.Error for a broken data set and for logits that
    are no numbers.
    """
    batch = _integer(batch, "batch", 1, 65536)
    image_size = _integer(image_size, "image_size", 0, 4096)
    limit = _integer(limit, "limit", 0, 1 << 40)
    _one_of(split, "split", ("test", "train", "validation", "fitting"))
    pair = None if data is None or isinstance(data, (str, bytes, os.PathLike)) else _pair(data)
    model = Model.of(model)
    with shown(progress) as report:
        if pair is None:
            path = "" if data is None else _path(data, "data")
            found, logits, labels = model._core.evaluate_path(path, split, limit, bool(skip_unreadable), batch,
                                                              image_size, bool(fold_first), report)
        else:
            found, logits, labels = model._core.evaluate_arrays(*pair, batch, image_size, bool(fold_first), report)
    values = json.loads(found)
    if values["stand_in"]:
        warnings.warn("made on the stand-in: drawn images, NOT CIFAR-10; give data a path for a result on real ones",
                      stacklevel=2)
    if not model._simulated and not np.isfinite(logits).all():  # the notebooks' defects may well overflow
        raise _core.Error("logits are NaN or infinite; nibblenet.inspect shows which weights are")
    return Evaluation(values["accuracy"], tuple(values["accuracy_interval"]), values["loss"], values["correct"],
                      values["images"], values["seconds"], values["data"], logits, np.array(labels, np.int64))


def _pair(data: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError("data: expected a path, or a pair of images and labels")
    images, labels = _arrays.array(data[0], "images"), _arrays.array(data[1], "labels")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images: expected uint8 [N, height, width, 3], got {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(f"labels: expected whole numbers [N], got {labels.dtype} {labels.shape}")
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise ValueError("labels: expected 0 to 255")
    return np.require(images, requirements=["C", "A"]), np.require(labels, np.int64, ["C", "A"])


def sweep(source: Source, schemes: Iterable[str | Mapping[str, Any]], data: Any = None, *, split: str = "test",
          limit: int = 0, batch: int = 128, device: str = "cpu",
          progress: bool | Progress | None = None) -> list[dict[str, Any]]:
    """Packs a model by each scheme and measures it: rows for pandas.DataFrame, the float model first.

    schemes: texts like "linear:4:channel" or "simulated-dynamic-tree:4", or dicts of pack's
    options. source and data: as `pack` and `evaluate` take them. Each row has scheme, accuracy, low
    and high (95 %), loss, only_float and only_this (images that one of the two gets right),
    difference and mcnemar_p (to the float model), bits_per_weight, estimated_bytes, resident_bytes
    and needed_bits. A simulated scheme has no size but needed_bits (see `simulate`), the others
    have None there.
    """
    if isinstance(schemes, (str, Mapping)):
        raise ValueError("schemes: expected a list of schemes")
    floats = Model.of(source, device)
    if floats.info["packed"]:
        raise ValueError("the model is packed already: take the float model it came from, or model.floats()")
    rows = []
    base = None
    for scheme in [None, *schemes]:
        if scheme is None:
            model, name = floats, "float32"
        elif isinstance(scheme, Mapping):
            model = pack(floats, device=device, progress=progress, **scheme)
            name = ", ".join(f"{key}={value}" for key, value in scheme.items())
        elif str(scheme).startswith("simulated-"):
            model, name = simulate(floats, scheme, device=device, progress=progress), scheme
        else:
            model, name = pack(floats, layers={"*": scheme}, device=device, progress=progress), scheme
        result = evaluate(model, data, split=split, limit=limit, batch=batch, progress=progress)
        base = base or result
        size, paired = None if model._simulated else model.size, result.compare(base)
        rows.append({"scheme": name, "accuracy": result.accuracy, "low": result.interval[0],
                     "high": result.interval[1], "loss": result.loss, "only_float": paired["only_other"],
                     "only_this": paired["only_this"], "difference": paired["difference"],
                     "mcnemar_p": paired["mcnemar_p"], "bits_per_weight": size and size.bits_per_weight,
                     "estimated_bytes": size and size.estimated, "resident_bytes": size and size.resident,
                     "needed_bits": model.report.get("needed_bits")})
        if model is not floats:
            model.close()
    return rows


def inspect(path: Path, *, key: str | None = None, strict: bool = False) -> dict[str, Any]:
    """What a model's file holds, as tools/inspect --json: tensors, total, bytes, header, metadata.

    key and strict: as `load` takes them. Raises OSError for a file that cannot be read,
    nibblenet.Error for one that is broken.
    """
    return json.loads(_core.inspect(_path(path, "path"), _key(key), bool(strict)))
