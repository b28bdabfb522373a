"""The lists of CONTRIBUTING.md, "Where something new goes", are true, and `tools/dev new` prints them.

usage: places.py

An entry names paths, then says what goes there. Every path is there, with the list's example for <name>; every word in
backticks stands in one of these files; the number of sources is the one that the list begins with.
"""

import os
import re
import subprocess
import sys

from house import ROOT, finish, read

DOCUMENT = "CONTRIBUTING.md"
HEADING = re.compile(r"### ([a-z-]+): ")
ENTRY = re.compile(r"\d+\. ")
SOURCE = re.compile(r"(engine|kernels|layers|training|tools)/\S+\.(h|cpp|cu|cuh)$")
EXAMPLE = re.compile(r"Example: `(\w+)`(?: in `(\w+)`)?")


def expanded(path):
    """The paths of one with braces: a.{h,cpp} is a.h and a.cpp."""
    found = re.search(r"\{([^}]*)\}", path)
    return [path[:found.start()] + each + path[found.end():] for each in found[1].split(",")] if found else [path]


class List:
    """What one kind of addition touches."""

    def __init__(self, line, kind):
        self.line, self.kind, self.introduction, self.entries = line, kind, "", []

    def add(self, line, text):
        if ENTRY.match(text):
            self.entries.append([line, text])
        elif self.entries and text.startswith("   "):
            self.entries[-1][1] += " " + text.strip()
        else:
            self.introduction += text + " "

    def example(self):
        found = EXAMPLE.search(self.introduction)
        return (found[1], found[2] or "") if found else ("", "")

    def places(self):
        """(line, paths as written, words in backticks behind them) of each entry."""
        for line, text in self.entries:
            paths, _, what = ENTRY.sub("", text, count=1).partition(": ")
            yield line, [each for path in re.findall(r"`([^`]+)`", paths) for each in expanded(path)], re.findall(r"`([^`]+)`", what)


def lists_of(text):
    lists = []
    for number, line in enumerate(text.splitlines(), 1):
        if found := HEADING.match(line):
            lists.append(List(number, found[1]))
        elif line.startswith("## "):
            if lists:
                break
        elif lists and line:
            lists[-1].add(number, line)
    return lists


def wrong_places(text):
    """(line, what is wrong) of the lists of a document."""
    for each in lists_of(text):
        name, room = each.example()
        sources = 0
        for line, paths, words in each.places():
            there = [path.replace("<name>", name).replace("<room>", room) for path in paths]
            sources += sum(SOURCE.match(path) is not None for path in there)
            missing = [path for path in there if not os.path.exists(os.path.join(ROOT, path))]
            for path in missing:
                yield line, f"{each.kind}: there is no {path}"
            if not paths:
                yield line, f"{each.kind}: an entry without a path"
            content = "" if missing else "".join(read(path) for path in there)
            for word in words if content else []:
                if "<" not in word and not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", content):
                    yield line, f"{each.kind}: there is no {word} in {', '.join(there)}"
        if not re.match(rf"{sources} sources?\b", each.introduction):
            yield each.line, f"{each.kind}: {sources} sources are named, the list begins with another number"


def wrong_output(text):
    """(line, what is wrong) of what tools/dev makes of the lists."""
    def dev(*arguments):
        return subprocess.run([os.path.join(ROOT, "tools/dev"), *arguments], capture_output=True, text=True, check=False)

    usage, refusal = dev("help").stdout, dev("new", "nothing", "thing")
    if refusal.returncode == 0:
        yield 1, "tools/dev new takes a kind that there is not"
    for each in lists_of(text):
        if each.kind not in usage or each.kind not in refusal.stderr:
            yield each.line, f"tools/dev does not say that there is the kind {each.kind}"
        printed = dev("new", each.kind, "something")
        shown = List(0, each.kind)
        for line in printed.stdout.splitlines():
            shown.add(0, line)
        wanted = [[path.replace("<name>", "something") for path in paths] for _, paths, _ in each.places()]
        if printed.returncode != 0 or not wanted or [paths for _, paths, _ in shown.places()] != wanted:
            yield each.line, f"tools/dev new {each.kind} does not print this list: {printed.stderr.strip()}"


def main():
    text = read(DOCUMENT)
    findings = [(DOCUMENT, *finding) for check in (wrong_places, wrong_output) for finding in check(text)]
    if len(lists_of(text)) < 5:
        findings.append((DOCUMENT, 1, "scheme, layer, network, backend and data-format have a list each"))
    return finish("places", findings, 1)


if __name__ == "__main__":
    sys.exit(main())
