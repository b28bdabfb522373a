"""The display of long calls."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, Iterator

Progress = Callable[[str, str, int, int], None]
"""Called as progress(label, unit, done, total) about twenty times a second."""


class _Bar:
    def __init__(self, tqdm: Any) -> None:
        self._tqdm = tqdm
        self._bar: Any = None
        self._label = ""

    def __call__(self, label: str, unit: str, done: int, total: int) -> None:
        if label != self._label:
            self.close()
            self._bar = self._tqdm(total=total, desc=label, unit=f" {unit}", leave=False)
            self._label = label
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def shown(progress: bool | Progress | None) -> Iterator[Progress | None]:
    """What a call reports to: a function, tqdm for True, nothing for False.

    None: tqdm where it is installed and somebody watches (a terminal or a notebook).
    """
    if callable(progress):
        yield progress
        return
    watched = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    if progress is False or (progress is None and not watched):
        yield None
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets: tqdm then writes text
            from tqdm.auto import tqdm
    except ImportError:
        if progress is True:
            raise ValueError("progress=True needs tqdm: pip install tqdm") from None
        yield None
        return
    bar = _Bar(tqdm)
    try:
        yield bar
    finally:
        bar.close()
