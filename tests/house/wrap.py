"""Prose wraps at 100 columns: documents but their tables and blocks of code, and lines that are a comment.

usage: wrap.py [FILE or FOLDER ...]

A line that cannot be broken (a link, an address, a drawing) may be longer. Code has 120 columns, and comments that stand
behind code on its line go with it: clang-format keeps to that.
"""

import re
import sys

from house import chosen, comment_lines, document_lines, finish, is_code, is_document, is_script, read, tracked_files

COLUMNS = 100
DRAWING = re.compile(r"[─│┌┐└┘├┤┬┴┼░►▼◄▲]|\.{4,}| {3,}\S+ {3,}")


def breakable(line):
    """Whether a space stands where the line could have been broken."""
    text = line.strip().lstrip("/#*-<! ")
    text = re.sub(r"\]\([^)]*\)|https?://\S+", lambda found: found[0].replace(" ", "_"), text)
    return " " in text and "http" not in text


def long_lines(path, text):
    """(line, what is wrong) of a file."""
    if is_document(path):
        lines = [(number, line) for number, line in document_lines(text)
                 if not line.lstrip().startswith(("|", "![", "<!--"))]
    else:
        whole = text.splitlines()
        lines = [(number, whole[number - 1]) for number, _, alone in comment_lines(path, text) if alone]
    for number, line in lines:
        if len(line) > COLUMNS and breakable(line) and not DRAWING.search(line):
            yield number, f"{len(line)} columns of prose, {COLUMNS} at most"


def main(arguments):
    files = chosen([path for path in tracked_files() if is_document(path) or is_code(path) or is_script(path)], arguments)
    findings = [(path, number, what) for path in files for number, what in long_lines(path, read(path))]
    return finish("wrap", findings, len(files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
