"""Includes go down the house: to lower floors, or inside of a room; the product includes no tests; and what a C++
compiler compiles includes no CUDA.

usage: includes.py [FILE or FOLDER ...]
"""

import re
import sys

from house import chosen, finish, is_code, read, tracked_files

# The product's folders, and the rooms of some of them, by their floors. "" is the room of the files
# that lie in no other one; where a folder has no "", each of those is a room above all others.
HOUSE = {"engine": 0, "kernels": 1, "layers": 2, "training": 3, "tools": 4}
ROOMS = {
    "kernels/cuda": {
        "device": 0, "weights": 1, "gemm": 2, "conv": 3, "linear": 3, "activations": 3, "routes": 4, "backend_cuda": 5
    },
    "layers": {"": 0, "network": 1},
    "training": {"compression": 0, "": 1},
    "tools": {"common": 0, "library": 0, "training": 1, "timing": 1, "study": 2, "": 3},
}
ON_THE_HOST = "tests/hostexec/"  # CUDA by a C++ compiler
INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


def places_of(path):
    """{folder: (name, floor)} of a file of the product: its top folder, and its room where that folder has rooms."""
    top = path.split("/")[0]
    if top not in HOUSE:
        return {}
    places = {"": (top, HOUSE[top])}
    for folder, rooms in ROOMS.items():
        if path.startswith(folder + "/"):
            name = re.split(r"[/.]", path[len(folder) + 1:])[0]
            room = "" if name not in rooms and "" in rooms else name
            places[folder] = (f"{folder}/{room}".rstrip("/"), rooms.get(room, max(rooms.values()) + 1))
    return places


def wrong_includes(path, text):
    """(line, what is wrong) of a source."""
    for number, line in enumerate(text.splitlines(), 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        included = found[1]
        if path.endswith(".cpp") and included.endswith(".cuh") and not path.startswith(ON_THE_HOST):
            yield number, f"a C++ compiler cannot read CUDA: {included}"
        if not places_of(path):
            continue
        if included.startswith("tests/"):
            yield number, f"the product includes test code, {included}"
        here, there = places_of(path), places_of(included)
        for folder in here.keys() & there.keys():
            (name, floor), (other, below) = here[folder], there[folder]
            if name != other and floor <= below:
                yield number, f"{name} includes {other}, which does not stand below it: {included}"


def main(arguments):
    files = chosen([path for path in tracked_files() if is_code(path)], arguments)
    findings = [(path, number, what) for path in files for number, what in wrong_includes(path, read(path))]
    return finish("includes", findings, len(files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
