"""docs/dependencies.md names the packages that tools/dev installs, and no others of Debian's.

usage: packages.py
"""

import re
import sys

from house import document_lines, finish, read


def main():
    tables = re.findall(r"^packages_\w+='\n(.*?)'$", read("tools/dev"), re.DOTALL | re.MULTILINE)
    installed = {line.split()[0] for table in tables for line in table.splitlines() if line.strip()}
    named = {}
    for number, line in document_lines(read("docs/dependencies.md")):
        if line.startswith("| ") and not line.startswith("| package"):
            named |= {package: number for package in re.findall(r"`([a-z0-9+.-]+)`", line.split(" | ")[0])}
    optional = {"chromium", "debootstrap", "pkg-config", "python3"}
    findings = [("docs/dependencies.md", 1, f"{package} is missing, tools/dev installs it")
                for package in sorted(installed - set(named))]
    findings += [("docs/dependencies.md", named[package], f"tools/dev does not install {package}")
                 for package in sorted(set(named) - installed - optional)]
    if not installed:
        findings.append(("tools/dev", 1, "no table of packages"))
    return finish("packages", findings, 2)


sys.exit(main())
