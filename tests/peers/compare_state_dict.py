"""State dicts there and back: PyTorch writes them in every way it can, tools/export reads them and writes them again, and
PyTorch finds the same tensors, bit for bit.

    build/peers/bin/python tests/peers/compare_state_dict.py --export build/cpu/tools/export --model weights/model.safetensors
"""

import argparse
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch


def export(tool, source, target, *options):
    subprocess.run([tool, source, *options, "-o", target], check=True, stdout=subprocess.DEVNULL)
    return target


def same_bits(expected, actual):
    return list(expected) == list(actual) and all(
        actual[name].dtype == torch.float32 and torch.equal(expected[name].view(torch.int32), actual[name].view(torch.int32))
        for name in expected)


def variants(state):
    """Name of a file, what is saved, and keyword arguments of torch.save."""
    old = {"_use_new_zipfile_serialization": False}
    prefixed = OrderedDict(("module." + name, value) for name, value in state.items())
    strided = OrderedDict((name, value.t().contiguous().t() if value.dim() == 2 else value) for name, value in state.items())
    flat = torch.cat([value.flatten() for value in state.values()])
    parts = flat.split([value.numel() for value in state.values()])
    shared = OrderedDict((name, part.view(state[name].shape)) for name, part in zip(state, parts))
    for suffix, keywords in ((".pth", {}), ("_old", old)):
        yield "plain" + suffix, state, keywords
        yield "wrapped" + suffix, {"epoch": 3, "state_dict": prefixed}, keywords
        yield "strided" + suffix, strided, keywords
        yield "shared" + suffix, shared, keywords
        yield "double" + suffix, OrderedDict((name, value.double()) for name, value in state.items()), keywords
        yield "parameters" + suffix, OrderedDict((name, torch.nn.Parameter(value)) for name, value in state.items()), keywords


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", required=True, help="build/cpu/tools/export")
    parser.add_argument("--model", required=True, help="any model of an AlexNet that tools/export reads")
    options = parser.parse_args()

    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        state = torch.load(export(options.export, options.model, folder / "start.pth", "--to", "pth"), weights_only=True)
        for name, saved, keywords in variants(state):
            torch.save(saved, folder / name, **keywords)
            returned = torch.load(export(options.export, folder / name, folder / "back.pth", "--to", "pth"), weights_only=True)
            good = same_bits(state, returned)
            failures += not good
            print(f"{name:<16} {'the same bits' if good else 'DIFFERENT'}", flush=True)
    print(f"PyTorch {torch.__version__}: {failures} differ")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
