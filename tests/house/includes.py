"""Includes go down the house: to lower floors, or inside of a room; and the product includes no tests.

usage: includes.py [FILE or FOLDER ...]
"""

import re
import sys

from house import chosen, finish, is_code, read, tracked_files

# Folders of the product, and the rooms of kernels/cuda, by their floors.
HOUSE = {"engine": 0, "kernels": 1, "layers": 2, "training": 3, "tools": 4}
CUDA = {"device": 0, "weights": 1, "gemm": 2, "conv": 3, "linear": 3, "activations": 3, "routes": 4, "backend_cuda": 5}
INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


def folder_of(path):
    """(name, floor) of a file's folder; nothing for what is not of the product."""
    name = path.split("/")[0]
    return (name, HOUSE[name]) if name in HOUSE else None


def room_of(path):
    """(name, floor) of a file's room in kernels/cuda. A file without a room stands above all."""
    if not path.startswith("kernels/cuda/"):
        return None
    name = re.split(r"[/.]", path)[2]
    return name, CUDA.get(name, max(CUDA.values()) + 1)


def wrong_includes(path, text):
    """(line, what is wrong) of a source of the product."""
    for number, line in enumerate(text.splitlines() if folder_of(path) else [], 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        included = found[1]
        if included.startswith("tests/"):
            yield number, f"the product includes test code, {included}"
        for place_of in (folder_of, room_of):
            here, there = place_of(path), place_of(included)
            if here and there and here[0] != there[0] and here[1] <= there[1]:
                yield number, f"{here[0]} includes {there[0]}, which does not stand below it: {included}"


def main(arguments):
    files = chosen([path for path in tracked_files() if is_code(path) and folder_of(path)], arguments)
    findings = [(path, number, what) for path in files for number, what in wrong_includes(path, read(path))]
    return finish("includes", findings, len(files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
