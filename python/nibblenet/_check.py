"""What weights that were rounded in float32 take to store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _arrays, _core, _tables
from ._progress import Progress, shown


@dataclass(frozen=True)
class CheckReport:
    """What weights take to store, beside what is claimed.

    `rows` has a dict for every tensor: name, shape, weights; the groups "tensor", "channel" and
    "row", each a dict of groups, values (the most different ones in a group), bits (of an index)
    and bytes (indices and float32 tables); scheme and scheme_bytes, or None where no scheme of
    nibblenet reproduces the values bit for bit; stored_as, the cheapest way, and its bytes.
    """

    rows: list[dict[str, Any]]
    claimed_bits: float | None

    @property
    def weights(self) -> int:
        """Weights of all tensors."""
        return sum(row["weights"] for row in self.rows)

    @property
    def bytes(self) -> float:
        """Bytes of all tensors, each stored the cheapest way."""
        return sum(row["bytes"] for row in self.rows)

    @property
    def claimed_bytes(self) -> float | None:
        """weights * claimed_bits / 8; None without a claim."""
        return None if self.claimed_bits is None else self.weights * self.claimed_bits / 8

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes on average, tables and scales included."""
        return 8 * self.bytes / self.weights

    @property
    def holds(self) -> bool | None:
        """Whether indices or codes of the claimed width suffice for every tensor; None without a claim.

        Tables and scales come on top: `bytes` counts them.
        """
        if self.claimed_bits is None:
            return None
        return all(row["stored_bits"] <= self.claimed_bits for row in self.rows)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        header = ["weight", "weights", "values: tensor", "channel", "row", "stored as", "bits/weight", "bytes"]
        if self.claimed_bits is not None:
            header.append("claimed bytes")

        def line(name: str, weights: int, values: list[str], stored: str, size: float) -> list[str]:
            cells = [name, _tables.count(weights), *values, stored, f"{8 * size / weights:.3f}", _tables.count(size)]
            if self.claimed_bits is not None:
                cells.append(_tables.count(weights * self.claimed_bits / 8))
            return cells

        rows = [line(row["name"], row["weights"],
                     [_tables.count(row[kind]["values"]) for kind in ("tensor", "channel", "row")],
                     row["stored_as"], row["bytes"]) for row in self.rows]
        if len(self.rows) > 1:
            rows.append(line("total", self.weights, ["", "", ""], "", self.bytes))
        return header, rows

    def _verdict(self) -> str:
        text = f"{self.bits_per_weight:.3f} bits a weight"
        if self.claimed_bits is None:
            return text
        verdict = "hold" if self.holds else "do not hold"
        return f"{self.claimed_bits:g} bits claimed: the values {verdict} that; they take {text}, tables and scales included"

    def __str__(self) -> str:
        return f"{_tables.text(*self._table())}\n{self._verdict()}"

    def _repr_html_(self) -> str:
        return _tables.as_html(*self._table(), caption=self._verdict())


def _as_weights(values: np.ndarray, name: str) -> np.ndarray:
    """[outputs, inputs] or [outputs, inputs, height, width], which the search knows; rows stay."""
    if values.ndim == 0 or values.size == 0:
        raise ValueError(f"{name}: expected weights, got shape {values.shape}")
    if values.ndim == 1:
        return values.reshape(1, -1)
    if values.ndim == 3:
        return values[:, :, None, :]
    if values.ndim > 4:
        return values.reshape(values.shape[0], -1, *values.shape[-2:])
    return values


def _stored_bits(row: dict[str, Any]) -> int:
    if row["stored_as"] == row["scheme"]:
        return int(row["scheme"].split(":")[1])
    if row["stored_as"] == "float32":
        return 32
    return row[row["stored_as"].rsplit(" ", 1)[1]]["bits"]


def check(weights: Any, claimed_bits: float | None = None, progress: bool | Progress | None = None) -> CheckReport:
    """What float weights that somebody rounded take to store, beside the bits that are claimed.

    weights: one tensor of any shape, or a state dict, whose tensors of two dimensions and more are
    checked. float32, or float16; the first dimension are output channels, a row is a run of the
    last one. For each it counts the different values of the tensor, of a channel and of a row, what
    a table for each of these takes, and looks for a scheme that decodes to the same bits. 0 and -0
    are one value. The search walks every method with fixed values, in groups by tensor, channel,
    row and blocks of 16 to 256.

    Raises ValueError for other types and shapes, nibblenet.Error for NaN and infinities.
    """
    if claimed_bits is not None and not (isinstance(claimed_bits, (int, float)) and 0 < claimed_bits <= 32):
        raise ValueError(f"claimed_bits {claimed_bits!r}: expected a number above 0, up to 32")
    if isinstance(weights, Mapping):
        tensors = [(name, values) for name, values in _arrays.state_dict(weights) if values.ndim > 1]
        if not tensors:
            raise ValueError("the state dict holds no tensor of two dimensions or more")
    else:
        tensors = [("weights", _arrays.floats(_arrays.detached(weights), "weights"))]
    rows = []
    with shown(progress) as report:
        for name, values in tensors:
            shaped = np.ascontiguousarray(_as_weights(values, name))
            row = json.loads(_core.check(shaped, name, report))
            row["shape"] = values.shape
            row["stored_bits"] = _stored_bits(row)
            rows.append(row)
    return CheckReport(rows, claimed_bits)
