"""Commands in the documents' blocks use options, and values of options, that docs/tools.md lists for their tool.

usage: commands.py [FILE or FOLDER ...]

A test of the tools compares docs/tools.md with each program's --help, so these options are the programs'. The page's table
of tools/dev has the commands that `tools/dev help` lists.
"""

import os
import re
import shlex
import subprocess
import sys

from house import ROOT, chosen, document_lines, finish, is_document, read, tracked_files

COMMAND = re.compile(r"\btools/(\w+)\b")


def options_of_tools(text):
    """{tool: {option: its values, or None where it takes any}} of docs/tools.md."""
    tools, shared, here = {}, {}, None
    for _, line in document_lines(text):
        if line.startswith("## "):
            name = line[3:].strip()
            here = shared if name == "Common options" else tools.setdefault(name, {})
        elif line.startswith("| `--") and here is not None:
            cells = re.split(r"(?<!\\) \| ", line.strip("| "))
            values = cells[1].strip("` ").split("\\|")
            listed = set(values) if len(values) > 1 and all(re.fullmatch(r"[a-z0-9-]+|T\d+", value) for value in values) else None
            here |= {option: listed for option in re.findall(r"`(--[\w-]+)", cells[0])}
    section = None
    for _, line in document_lines(text):
        if line.startswith("## "):
            section = line[3:].strip()
        elif section in tools and section != "Common options":
            for option in re.findall(r"`(--[\w-]+)`", line if not line.startswith("|") else ""):
                tools[section].setdefault(option, shared.get(option))
    return tools


def shell_commands(text):
    """(line, command) of the blocks marked sh, with continued lines joined."""
    inside, begun, command = False, 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            inside, command = line.startswith("```sh"), ""
        elif inside:
            begun = begun if command else number
            command += line.removesuffix("\\")
            if not line.endswith("\\"):
                yield begun, command
                command = ""


def wrong_words(text, tools):
    """(line, what is wrong) of a document."""
    for number, command in shell_commands(text):
        found = COMMAND.search(command)
        if not found or found[1] not in tools or found[1] == "dev":
            continue
        words = shlex.split(command[found.end():], comments=True)
        known = tools[found[1]]
        for word, value in zip(words, words[1:] + [""]):
            if word == "-o" or not word.startswith("--"):
                continue
            if word not in known:
                yield number, f"tools/{found[1]} has no {word}"
            elif known[word] and value not in known[word]:
                yield number, f"tools/{found[1]} {word} does not take {value}"


def wrong_dev_table(text, usage):
    """(line, what is wrong) of the table of tools/dev's commands, beside the text of `tools/dev help`."""
    wanted = set(re.findall(r"^  ([a-z]+)\b", usage, re.MULTILINE)) - {"help"}
    at, section = 0, None
    listed = {}
    for number, line in document_lines(text):
        if line.startswith("## "):
            section = line[3:].strip()
            at = number if section == "dev" else at
        elif section == "dev" and (found := re.match(r"\| `([a-z]+)", line)):
            listed[found[1]] = number
    yield from ((at, f"tools/dev {name} is missing in the table") for name in sorted(wanted - set(listed)))
    yield from ((listed[name], f"tools/dev has no {name}") for name in sorted(set(listed) - wanted))


def main(arguments):
    tools = options_of_tools(read("docs/tools.md"))
    files = chosen([path for path in tracked_files() if is_document(path)], arguments)
    findings = [(path, number, what) for path in files for number, what in wrong_words(read(path), tools)]
    if not arguments:
        usage = subprocess.run([os.path.join(ROOT, "tools/dev"), "help"], capture_output=True, text=True, check=False).stdout
        findings += [("docs/tools.md", *finding) for finding in wrong_dev_table(read("docs/tools.md"), usage)]
    return finish("commands", findings, len(files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
