"""The commands that our messages, help texts, comments and documents name.

Inside quotes (' or backticks), at the start of a line of a fenced block and as a string of its own, a command is
named whole: verb, flags and their values. In running text it is the verb alone.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT
from test_architecture import PACKAGES

BLANK = "…"  # stands for what a message fills in
QUOTED = re.compile(
    r"(?P<quote>``|`|')(?P<said>(?:moon (?=[a-z])|make (?=[a-z])|--[a-z])(?:(?!(?P=quote))[^\n]|\n(?!\n))*)(?P=quote)"
)
RUNNING = re.compile(r"(?<![\w./`'\"-])moon(?= [a-z])(?P<words>(?: [a-z]+){1,3})")


@dataclass(frozen=True)
class Mention:
    """Where a command is named, its words, whether these are all of it, and whether it is there to be typed."""

    where: str
    words: tuple[str, ...]
    whole: bool = True
    typed: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {' '.join(self.words)}"


def in_text(where: str, text: str) -> Iterator[Mention]:
    """Those of some prose."""
    for found in QUOTED.finditer(text):
        yield Mention(where, tuple(found["said"].split()))
    for found in RUNNING.finditer(QUOTED.sub("", text)):
        yield Mention(where, ("moon", *found["words"].split()), whole=False)


def in_shell(where: str, block: str) -> Iterator[Mention]:
    """Those of a fenced block: a command ends at two spaces, where a remark begins."""
    for line in block.replace("\\\n", " ").splitlines():
        command = re.split(r"  +|\s#|&&|[|;>]", line.strip().removeprefix("$ "))[0]
        if re.match(r"(moon|make|python -m moon) ", command):
            yield Mention(where, tuple(command.removeprefix("python -m ").split()), typed=True)


def in_markdown(path: Path) -> Iterator[Mention]:
    """Those of a document."""
    where = str(path.relative_to(ROOT))
    for number, part in enumerate(re.split(r"^```.*$", path.read_text(), flags=re.MULTILINE)):
        yield from in_shell(where, part) if number % 2 else in_text(where, part)


def in_python(path: Path) -> Iterator[Mention]:
    """Those of the strings and comments of a program."""
    text = path.read_text()
    tree = ast.parse(text)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in inner or (said := _said(node, constants)) is None:
            continue
        where = f"{path.relative_to(ROOT)}:{node.lineno}"
        if re.fullmatch(r"moon [a-z][^\n'`]*", said) and len(said) < 80:
            yield Mention(where, tuple(said.split()))
        else:
            yield from in_text(where, said)
            for flag in re.findall(r"(?<=\w )--[a-z][a-z-]*(?![\w:-])", QUOTED.sub("", said)):
                yield Mention(where, (flag,))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from in_text(f"{path.relative_to(ROOT)}:{token.start[0]}", token.string)


def _said(node: ast.AST, constants: dict[str, object]) -> str | None:
    """A string as it will be read: constants of the file in their place, a blank for whatever else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        else:
            name = ast.unparse(part.value)
            parts.append(str(constants.get(name, BLANK)))
    return "".join(parts)


def everywhere() -> Iterator[Mention]:
    """Those of all that we ship: programs, their templates and settings, documents, Makefile and CI."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            where = str(path.relative_to(ROOT))
            if path.suffix == ".py":
                yield from in_python(path)
            elif path.suffix in (".html", ".yaml") and "/data/" not in where:
                yield from in_text(where, path.read_text())
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        yield from in_markdown(path)
    for name in ("Makefile", ".ci/run"):
        yield from in_shell(name, re.sub(r"\$\(BIN\)/", "", (ROOT / name).read_text()))
    for path in (ROOT / "Makefile", ROOT / "pyproject.toml", *sorted((ROOT / "requirements").glob("*.*"))):
        yield from in_text(str(path.relative_to(ROOT)), path.read_text())
