"""Every public function, type and constant that a header declares has a comment: shapes, units, errors, or what it is.

usage: headers.py [FILE or FOLDER ...]

One comment may cover neighbours: declarations without an empty line between them. Overrides, special members, constructors
that only set members, and accessors (members whose body is one return, or that return a reference to what they name) need
none. Neither do members of data, which are left to the reader's judgement.
A small reader of C++ finds the declarations: namespaces, classes and their access, statements; bodies are passed over.
"""

import re
import sys

from house import chosen, finish, read, tracked_files

HEAD_OF_TYPE = re.compile(r"^(?:template\s*<.*?>\s*)?(?:requires\b.*?)?(class|struct|union|enum)\b(?![^{;]*\()", re.DOTALL)
ACCESS = re.compile(r"^\s*(public|protected|private)\s*$")
NEEDS_NONE = re.compile(r"^(template\s*<.*>\s*)?(friend|static_assert|using\s+(namespace|enum)?\s*[\w:]+\s*$|extern template|namespace)\b"
                        r"|^using\s+(?!\w+\s*=)|^typedef\b"
                        r"|^(template\s*<.*>\s*)?(class|struct|union|enum)(\s+class)?\s+\w+(\s*:\s*\w+)?\s*$", re.DOTALL)
SPECIAL = re.compile(r"\boverride\b|\bfinal\b|=\s*(default|delete)\s*$|^(virtual\s+)?~|\boperator\s*=\s*\(|^\w+\s*\(\s*\)"
                     r"|^(\w+)\s*\(\s*(const\s+)?\3\s*&&?\s*\w*\s*\)")
SETS_MEMBERS = re.compile(r"^(explicit\s+|constexpr\s+)*[A-Z]\w*\s*\(.*\)\s*(requires.*)?:.*\{\s*\}$", re.DOTALL)
ACCESSOR = re.compile(r"\)\s*(const)?\s*(noexcept)?\s*(->\s*[\w:<>&* ]+)?\s*\{\s*return\b[^;]*;\s*\}$"
                      r"|^(virtual\s+)?const\s+[\w:]+&\s+\w+\(\s*\)\s*const\b", re.DOTALL)


def without_comments(text):
    """The code with comments, strings and preprocessor lines as spaces; lines that hold a comment; those of nothing else."""
    with_comment, only_comment, code = set(), set(), []
    continued = False
    for number, line in enumerate(text.splitlines(), 1):
        if continued or line.lstrip().startswith("#"):
            continued = line.endswith("\\")
            code.append("")
            continue
        line = re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])\'', lambda found: '"' + " " * (len(found[0]) - 2) + '"', line)
        line = re.sub(r"/\*.*?\*/", "", line)
        at = line.find("//")
        if at >= 0:
            with_comment.add(number)
            if not line[:at].strip():
                only_comment.add(number)
            line = line[:at]
        code.append(line)
    return "\n".join(code), with_comment, only_comment


def is_initialised(head):
    """Whether an equals sign stands in front of a brace: what follows is a value, not a body."""
    before = None
    while before != head:
        before, head = head, re.sub(r"\([^()]*\)|<[^<>]*>", "", head)
    return re.search(r"(?<![=!<>+*/|&^-])=(?!=)", re.sub(r"operator\s*\S+", "", head)) is not None


class Reader:
    """Declarations of a header: (first line, last line, text, public, inside a class), in their order."""

    def __init__(self, code):
        self.code, self.at, self.line = code, 0, 1
        self.declarations = []
        self.read_scope(public=True, of_class=False)

    def next(self):
        character = self.code[self.at]
        self.at += 1
        self.line += character == "\n"
        return character

    def skip(self, opening, closing):
        """Behind the bracket that closes the one just read; returns what was passed."""
        depth, begin = 1, self.at
        while self.at < len(self.code) and depth:
            character = self.next()
            depth += (character == opening) - (character == closing)
        return self.code[begin:self.at]

    def following(self):
        return self.code[self.at:].lstrip()[:1]

    def read_scope(self, public, of_class, access="public"):
        text, first = "", None
        while self.at < len(self.code):
            character = self.next()
            if first is None and not character.isspace() and character not in "};":
                first = self.line
            if character == "(":
                text += "(" + self.skip("(", ")")
            elif character == ":" and of_class and ACCESS.match(text):
                access, text, first = text.strip(), "", None
            elif character == "{":
                text, first = self.read_braces(text, first, public and access == "public", of_class)
            elif character == "}":
                return
            elif character == ";":
                self.declare(text, first, public and access == "public", of_class)
                text, first = "", None
            else:
                text += character

    def read_braces(self, text, first, public, of_class):
        head = text.strip()
        if re.match(r"(inline\s+)?namespace\b|extern\s+\"", head):
            named = re.match(r"(inline\s+)?namespace\s+\w", head) is not None
            self.read_scope(public and named, False)
            return "", None
        kind = HEAD_OF_TYPE.match(head)
        if kind and "=" not in re.sub(r"^template\s*<.*?>", "", head):
            self.declare(text + "{}", first, public, of_class)
            if kind[1] == "enum":
                self.skip("{", "}")
            else:
                self.read_scope(public, True, "private" if kind[1] == "class" else "public")
            self.pass_end_of_type()
            return "", None
        text += "{" + self.skip("{", "}")
        if self.following() in (";", ",", "{") or is_initialised(head):
            return text, first
        self.declare(text, first, public, of_class)
        return "", None

    def pass_end_of_type(self):
        """To the semicolon behind a type, over the variable it may declare."""
        while self.at < len(self.code) and self.next() != ";":
            pass

    def declare(self, text, first, public, of_class):
        if text.strip():
            self.declarations.append((first, self.line, re.sub(r"\s+", " ", text.strip()), public, of_class))


def needs_comment(text, of_class):
    if NEEDS_NONE.search(text) or of_class and any(rule.search(text) for rule in (SPECIAL, SETS_MEMBERS, ACCESSOR)):
        return False
    is_type = HEAD_OF_TYPE.match(text) or text.startswith("using ")
    is_function = "(" in re.sub(r"=.*|<[^<>]*>|decltype\([^()]*\)", "", text)
    is_defined_outside = re.search(r">::\w+\(", text)  # of a template, declared above
    return bool((is_type or is_function or not of_class) and not is_defined_outside)


def without_a_comment(text):
    """(line, what is wrong) of a header."""
    code, with_comment, only_comment = without_comments(text)
    covered_to = None  # last line of a declaration that has a comment
    for first, last, declaration, public, of_class in Reader(code).declarations:
        is_covered = (first - 1 in only_comment or any(line in with_comment for line in range(first, last + 1))
                      or covered_to == first - 1)
        covered_to = last if is_covered else None
        if public and not is_covered and needs_comment(declaration, of_class):
            yield first, f"no comment: {declaration[:70]}"


def main(arguments):
    files = chosen([path for path in tracked_files() if path.endswith(".h") and not path.startswith("tests/")], arguments)
    findings = [(path, number, what) for path in files for number, what in without_a_comment(read(path))]
    return finish("headers", findings, len(files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
