"""Files that are tables in another form, as JSON lines: what Python printed, one large document, an XML feed."""

from __future__ import annotations

import ast
import atexit
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from dataset.adapters.source import NEXT
from dataset.contracts import DataError

XML = "xml"


def as_lines(path: Path, layout: str | None, stream: IO[bytes], encoding: str) -> Path | None:
    """The same rows as JSON lines, made once in this process; None: the file can be read as it is.

    Args:
        path: of the file.
        layout: "json" or "xml"; others can be read as they are.
        stream: its bytes, unpacked.
        encoding: of its text.

    Raises:
        DataError: neither JSON nor what Python prints, or XML without repeated elements.
    """
    if layout not in ("json", XML):
        return None
    state = path.stat()
    key = (path, state.st_mtime_ns, state.st_size)
    if key not in _made():
        rows = _elements(stream) if layout == XML else _rows(stream, encoding)
        _made()[key] = None if rows is None else _written(path, rows)
    return _made()[key]


@cache
def _made() -> dict[tuple[Path, int, int], Path | None]:
    return {}


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="moon-lines-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _written(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    copy = Path(tempfile.mkdtemp(dir=_folder())) / f"{path.name}.jsonl"
    with copy.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return copy


def _rows(stream: IO[bytes], encoding: str) -> Iterator[dict[str, Any]] | None:
    """The rows of lines that Python printed, or of the list that a document holds; None: JSON that can be read."""
    text = io.TextIOWrapper(stream, "utf-8-sig" if encoding == "utf-8" else encoding)
    lines = (line for line in text if line.strip())
    first = next(lines, "")
    if not first.lstrip().startswith("{"):
        return None
    try:
        row = json.loads(first)
    except ValueError:
        if (literal := _literal(first)) is not None:
            return chain([literal], _literals(lines))
        if first.rstrip().endswith("}"):
            return None  # a broken line: the readers say where
        try:
            row = json.loads(first + "".join(lines))
        except ValueError:
            return None  # DuckDB says where it is broken
    else:
        if next(lines, None) is not None:
            return None
    longest = _longest(row)
    return None if longest is None else iter(longest)


def _longest(document: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The longest list of objects of a document that is one object."""
    lists = [one for one in document.values() if isinstance(one, list) and one and isinstance(one[0], dict)]
    return max(lists, key=len, default=None)


def _literal(line: str) -> dict[str, Any] | None:
    try:
        row = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _literals(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=2):
        row = _literal(line)
        if row is None:
            raise DataError(
                f"line {number}: expected a dictionary as Python prints it, as in the lines before, found "
                f"{line.strip()[:60]!r}. Correct the line. {NEXT}"
            )
        yield row


def _elements(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The elements of a feed that repeat most often and hold others: its items, offers or entries."""
    try:
        root = ElementTree.parse(stream).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"expected XML, found: {error}. Correct the file. {NEXT}") from None
    counts = Counter(
        (parent.tag, child.tag) for parent in root.iter() for child in parent if len(child)
    )  # (of a list, of its parts)
    if not counts:
        raise DataError(f"expected XML with an element for each row, found only single values. {NEXT}")
    within, tag = counts.most_common(1)[0][0]
    return (
        {**{_tag(name): value for name, value in child.attrib.items()}, **_fields(child)}
        for parent in root.iter(within)
        for child in parent.findall(tag)
    )


def _fields(element: ElementTree.Element) -> dict[str, Any]:
    """The children of an element by name: texts, lists where one repeats, objects where it has children itself."""
    found: dict[str, list[Any]] = {}
    for child in element:
        found.setdefault(_tag(child.tag), []).append(
            _fields(child) if len(child) else (child.text or "").strip()
        )
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _tag(name: str) -> str:
    """The name without its namespace."""
    return name.rpartition("}")[2]
