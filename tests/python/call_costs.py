"""What a call costs beyond its C++ pass: model(x) and packed layers, with and without pauses.

  python tests/python/call_costs.py [MODEL] [--calls N]

Needs the package as users build it (pip install .), and PyTorch for the layers. MODEL is a file; without it a small
network is drawn (tests/python/support.py). Each row has medians of N calls in microseconds: the call; the C++ pass
inside of it, as the core timed it, and the rest; and the same pass in C++ alone, in turns with the calls, and the
difference from it. An input [N, C, H, W] is compared with the pass of the same values channels last, so that the copy
counts. A pause in front of each call lets threads fall asleep and caches forget. Not a test: the figures are the
machine's.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

import nibblenet
from support import pictures, prepared, state_dict

ROUNDS = 10


@dataclass
class Case:
    """call(): a call. inside(): seconds of the pass in the last one. alone(calls, pause): seconds of passes in C++."""

    name: str
    call: Callable[[], Any]
    inside: Callable[[], float]
    alone: Callable[[int, float], list[float]]


def measure(case: Case, calls: int, pause: float) -> tuple[float, float, float]:
    """Medians of the seconds of a call, of the pass inside of it, and of a pass alone."""
    whole, inside, alone = [], [], []
    for _ in range(ROUNDS):
        alone += case.alone(calls // ROUNDS, pause)
        for i in range(calls // ROUNDS + 2):
            if pause > 0:
                time.sleep(pause)
            start = time.perf_counter()
            case.call()
            seconds = time.perf_counter() - start
            if i >= 2:  # the first ones hand threads over
                whole.append(seconds)
                inside.append(case.inside())
    return statistics.median(whole), statistics.median(inside), statistics.median(alone)


def cases(path: str | None):
    """Everything that is timed."""
    model = nibblenet.load(path) if path else nibblenet.pack(state_dict(), bits=4)
    planes, images = prepared(1, 224 if path else 64), pictures(1)
    pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for name, given, taken, kind in (("float32, channels last", pixels, pixels, 0),
                                     ("float32 [N, 3, H, W]", planes, pixels, 0), ("uint8 [N, H, W, 3]", images, images, 1)):
        yield Case(name, lambda: model(given), lambda: model._core.last_seconds[kind],
                   lambda calls, pause: model._core.seconds_of_logits(taken, calls, pause))
    try:
        import torch
    except ModuleNotFoundError:
        return
    import nibblenet.torch as packed_torch
    torch.set_grad_enabled(False)
    linear = packed_torch.Linear.of(torch.nn.Linear(32, 10), "linear:4:channel").eval()
    rows, sums = torch.randn(1, 32), torch.empty(1, 10)
    yield Case("Linear(32, 10)", lambda: linear(rows), lambda: linear._form().last_seconds,
               lambda *how: linear._form().seconds_of_linear(sums.numpy(), rows.numpy(), linear._held_parts(), *how))
    conv = packed_torch.Conv2d.of(torch.nn.Conv2d(8, 8, 3, padding=1), "linear:4:channel").eval()
    inputs = torch.randn(1, 8, 6, 6)
    last = inputs.to(memory_format=torch.channels_last)
    output = torch.empty_like(last)
    for name, x in (("Conv2d(8, 8, 3), channels last", last), ("Conv2d(8, 8, 3)", inputs)):
        yield Case(name, lambda: conv(x), lambda: conv._form().last_seconds,
                   lambda *how: conv._form().seconds_of_conv2d(output.numpy(), last.numpy(), 1, 1, conv._held_parts(), *how))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    print(f"{'':32}{'pause, ms':>10}{'call':>10}{'pass inside':>13}{'rest':>7}{'pass alone':>12}{'more':>7}")
    for case in cases(options.model):
        for pause in (0, 0.001):
            whole, inside, alone = measure(case, options.calls // (4 if pause else 1), pause)
            print(f"{case.name:32}{1e3 * pause:10g}{1e6 * whole:10.1f}{1e6 * inside:13.1f}{1e6 * (whole - inside):7.1f}"
                  f"{1e6 * alone:12.1f}{1e6 * (whole - alone):7.1f}", flush=True)


if __name__ == "__main__":
    main()
