"""Links between documents, and the files that documents and comments name, are there.

usage: links.py [FILE or FOLDER ...]
"""

import os
import re
import sys

from house import ROOT, chosen, comment_lines, document_lines, finish, is_code, is_document, is_script, read, tracked_files

# What a document or comment calls a file: a path of our folders with an ending.
NAMED = re.compile(r"\b((?:engine|kernels|layers|training|tools|tests|docs|weights)/[\w./-]*\.(?:h|cpp|cu|cuh|py|sh|md|txt|"
                   r"json|safetensors)|(?:README|CONTRIBUTING)\.md)\b")
# Inside kernels/cuda and in its documents, rooms go by their own names.
ROOM = re.compile(r"(?<![\w/])((?:conv|linear|gemm|activations|weights|device)/\w+\.(?:h|cpp|cu|cuh))\b")
# Names that stand for files of the user's.
EXAMPLES = re.compile(r"^(weights/(model|packed|trained|demo)\w*\.safetensors|tests/data/\S*\.json)$|/<")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchor_of(heading):
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors_of(path):
    return {anchor_of(line.lstrip("# ")) for _, line in document_lines(read(path)) if line.startswith("#")}


def broken_link(path, target):
    if re.match(r"[a-z]+:", target):
        return None
    file, _, anchor = target.partition("#")
    place = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
    if not os.path.exists(os.path.join(ROOT, place)):
        return f"there is no {place}"
    if anchor and anchor not in anchors_of(place):
        return f"{place} has no heading #{anchor}"
    return None


def broken_links(path, text):
    """(line, what is wrong) of a file."""
    lines = list(document_lines(text)) if is_document(path) else [line[:2] for line in comment_lines(path, text)]
    for number, line in lines:
        if is_document(path):
            for target in LINK.findall(line):
                if wrong := broken_link(path, target):
                    yield number, wrong
        for name in sorted(set(NAMED.findall(line) + ROOM.findall(line))):
            places = (os.path.join(ROOT, name), os.path.join(ROOT, "kernels/cuda", name))
            if not EXAMPLES.search(name) and not any(os.path.exists(place) for place in places):
                yield number, f"there is no {name}"


def main(arguments):
    files = chosen([path for path in tracked_files() if is_document(path) or is_code(path) or is_script(path)], arguments)
    findings = [(path, number, what) for path in files for number, what in broken_links(path, read(path))]
    return finish("links", findings, len(files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
