"""What the checks of this folder share: which files there are, and which of their lines are prose.

Every check prints `file:line: what is wrong` and returns 1; without what it needs it says so and returns 77.
"""

import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SKIPPED = 77
CODE = (".h", ".cpp", ".cu", ".cuh")
SCRIPTS = (".py", ".sh", ".cmake", "CMakeLists.txt", "tools/dev", "tools/launch", ".ci/run")
NEVER = re.compile(r"^(build|data|sweeps)/|^weights/(?!README)|/seeds/|^tests/data/")


def tracked_files():
    """Paths of the project's own text files, from git or, in an exported tree, from the folders."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        paths = listed.stdout.splitlines()
    else:
        paths = [os.path.relpath(os.path.join(folder, name), ROOT) for folder, _, names in os.walk(ROOT) for name in names]
    return sorted(path for path in paths if not NEVER.search(path) and os.path.isfile(os.path.join(ROOT, path)))


def chosen(paths, arguments):
    """Those of `paths` that the command line names, as files or folders; all without arguments."""
    wanted = [os.path.relpath(os.path.abspath(argument), ROOT) for argument in arguments]
    missing = [argument for argument in arguments if not os.path.exists(argument)]
    if missing:
        sys.exit(f"there is no {missing[0]}")
    return [path for path in paths if not wanted or any(path == each or path.startswith(each + "/") or each == "."
                                                        for each in wanted)]


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def is_code(path):
    return path.endswith(CODE)


def is_script(path):
    return path.endswith(SCRIPTS)


def is_document(path):
    return path.endswith(".md")


def document_lines(text):
    """(number, line) of a document's lines outside of blocks of code."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def comment_lines(path, text):
    """(number, text of the comment, whether nothing else stands on the line) of a source."""
    if not is_code(path):
        for number, line in enumerate(text.splitlines(), 1):
            stripped = line.strip()
            if stripped.startswith("#") and not stripped.startswith("#!"):
                yield number, stripped.lstrip("# "), True
        return
    for number, line in enumerate(text.splitlines(), 1):
        code = re.sub(r'"(\\.|[^"\\])*"', lambda found: '"' + "_" * (len(found[0]) - 2) + '"', line)
        at = code.find("//")
        if at >= 0:
            yield number, line[at:].lstrip("/<! "), not line[:at].strip()


def finish(check, findings, looked_at):
    for path, number, what in findings:
        print(f"{path}:{number}: {what}")
    print(f"{check}: {len(findings)} findings in {looked_at} files")
    return 1 if findings else 0
