"""Subjects of commits have at most 72 characters, since the commit from which on that is asked.

usage: subjects.py
"""

import subprocess
import sys

from house import ROOT, SKIPPED

MOST = 72
LAST_BEFORE = "ddbb18f"


def git(*arguments):
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)


def main():
    if git("merge-base", "--is-ancestor", LAST_BEFORE, "HEAD").returncode != 0:
        print(f"skipped: there is no history here that holds {LAST_BEFORE}")
        return SKIPPED
    commits = [line.split(" ", 1) for line in git("log", "--format=%h %s", f"{LAST_BEFORE}..HEAD").stdout.splitlines()]
    long = [(commit, subject) for commit, subject in commits if len(subject) > MOST]
    for commit, subject in long:
        print(f"{commit}:1: {len(subject)} characters, {MOST} at most: {subject}")
    print(f"subjects: {len(long)} findings in {len(commits)} commits")
    return 1 if long else 0


sys.exit(main())
