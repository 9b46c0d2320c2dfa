"""Which test files can touch what is mutated at all: those that import it, however far down."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path


def reaching(root: Path, tests: Iterable[Path], wanted: Iterable[Path]) -> list[Path]:
    """The tests that import one of the wanted files, directly or through others, anywhere in their code."""
    aims = set(wanted)
    return [test for test in tests if _closure(root, test) & aims]


def _closure(root: Path, file: Path) -> set[Path]:
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += _imports(root, one)
    return found


@cache
def _imports(root: Path, file: Path) -> set[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set(_files(root, names))


def _files(root: Path, names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        for folder in (root, root / "tests"):
            path = folder.joinpath(*name.split("."))
            yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists())
