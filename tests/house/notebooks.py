"""Notebooks in git hold no outputs, and their prose and code keep the rules of other files.

usage: notebooks.py [FILE or FOLDER ...]

Lines are counted in the cells: `file:3` is the third cell. A notebook's file is JSON as Jupyter writes it, indented by one
space, so that a diff shows what changed.
"""

import json
import sys

from house import chosen, document_lines, finish, read, tracked_files
from links import LINK, broken_link
from words import words_of
from wrap import breakable

PROSE, CODE = 100, 120


def wrong_cell(path, cell):
    """What is wrong with a cell."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "code":
        if cell["outputs"]:
            yield "has outputs: clear them before a commit (jupyter nbconvert --clear-output --inplace)"
        if cell["execution_count"] is not None:
            yield "has an execution count: clear the outputs"
        lines, most = list(enumerate(source.splitlines(), 1)), CODE
    else:
        lines, most = list(document_lines(source)), PROSE
        for _, line in lines:
            yield from filter(None, (broken_link(path, target) for target in LINK.findall(line)))
    for number, line in lines:
        if len(line) > most and breakable(line):
            yield f"line {number}: {len(line)} columns, {most} at most"
    for number, what in words_of(path, source):
        yield f"line {number}: {what}"


def wrong_notebook(path, text):
    """(cell, what is wrong) of a notebook."""
    try:
        notebook = json.loads(text)
        cells = [list(wrong_cell(path, cell)) for cell in notebook["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        yield 1, f"is no notebook: {error}"
        return
    for number, findings in enumerate(cells, 1):
        for what in findings:
            yield number, what
    if text != json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n":
        yield 1, "is not written as Jupyter writes it: open and save it there"


def main(arguments):
    files = chosen([path for path in tracked_files() if path.endswith(".ipynb")], arguments)
    findings = [(path, number, what) for path in files for number, what in wrong_notebook(path, read(path))]
    return finish("notebooks", findings, len(files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
