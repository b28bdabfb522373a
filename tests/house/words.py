"""No document, comment, help text or message uses a word of ours where the field has one.

usage: words.py [FILE or FOLDER ...]

The field's words are in docs/architecture.md#glossary. Only words that mean nothing else are looked for.
"""

import re
import sys

from house import chosen, finish, is_code, is_document, is_script, read, tracked_files

WORDS = [
    (r"\bthe seed['’]s\b|\bseed['’]s (study|notebooks?)\b|--preset seed|\bseed preset\b", "the original notebooks, --preset notebooks"),
    (r"yardstick", "baseline"),
    (r"\bsize at rest\b|\brest size\b|\bMB at rest\b|\bcompressed_rest\b|\baccuracy_rest\b|\bloss_rest\b", "file size"),
    (r"--target-rest", "--target-file"),
    (r"(?<!-)--units\b", "--channels"),
    (r"skinny", "few_rows, small batch"),
    (r"\barrivals?\b", "split-K semaphore"),
    (r"\bcompensated\b", "GPTQ, gptq"),
    (r"let_next_kernel_begin", "PDL trigger"),
    (r"wait_for_kernel_before", "PDL wait"),
    (r"\bproducts? (of|by) (Hopper['’]s )?warpgroups?\b|\bwarpgroups?['’] products?\b", "wgmma"),
    (r"\btensor products?\b", "mma"),
]

# (file, line, why): where one of them may stand.
EXEMPT = [
    (r"^tests/house/(words|house_test)\.py$", r"", "the list itself"),
    (r"^tools/common/aliases\.(h|cpp)$", r"", "old names that are still understood"),
    (r"^tests/tools/aliases_test\.cpp$", r"", "tests of the old names"),
    (r"^CHANGELOG\.md$", r"^\|", "its table of renamed options"),
    (r"", r'"(rounding=)?compensated"|rounding=compensated', "a value inside files"),
    (r"", r'"(rest|rest_bits_per_weight|rest_bytes|compressed_rest|compressed_rest_bytes|yardstick|units)"', "an old key"),
]


def words_of(path, text):
    """(line, what is wrong) of a file."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in WORDS:
            found = re.search(pattern, line, re.IGNORECASE)
            if found and not any(re.search(file, path) and re.search(there, line) for file, there, _ in EXEMPT):
                yield number, f"'{found[0]}': write {instead}"


def main(arguments):
    files = chosen([path for path in tracked_files() if is_document(path) or is_code(path) or is_script(path)], arguments)
    findings = [(path, number, what) for path in files for number, what in words_of(path, read(path))]
    return finish("words", findings, len(files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
