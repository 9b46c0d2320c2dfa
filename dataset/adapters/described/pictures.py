"""Pictures of described items: bytes in a column, paths in a column, or files named after the item's id."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from dataset.adapters.described.cells import Cell, Reader, read
from dataset.adapters.described.description import Images, Items
from dataset.adapters.described.entities import files_of
from dataset.adapters.described.files import Batch, inside
from dataset.adapters.described.names import Names
from dataset.adapters.source import NEXT
from dataset.contracts import DataError
from dataset.pictures import BLOCK, ENDINGS, MOST_BYTES, OTHER_ENDINGS, shrink
from run.progress import track

ROWS = 512  # of a batch that holds pictures
MISSING, UNKNOWN, MORE = "named but not there", "of an unknown item", "beyond the first of an item"


@dataclass
class Pictures:
    """The first picture of each item.

    Attributes:
        root: the folder.
        names: ids of the items.
        known: int64 ids of the items that take a picture.
        counts: of pictures that were not taken, by reason.
    """

    root: Path
    names: Names
    known: set[int]
    counts: Counter[str] = field(default_factory=Counter)

    def of(self, items: Sequence[Items], images: Sequence[Images]) -> Iterator[tuple[int, bytes]]:
        """(item id, encoded picture, shrunk) of every item that has one.

        Raises:
            DataError: a path leaves the folder; names file, row and column.
        """
        taken: set[int] = set()
        waiting = track(self._chosen(items, images, taken), "read pictures", unit="pictures")
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            while block := list(islice(waiting, BLOCK)):
                yield from zip(
                    (one for one, _ in block),
                    threads.map(_content, (found for _, found in block)),
                    strict=True,
                )

    def _chosen(
        self, items: Sequence[Items], images: Sequence[Images], taken: set[int]
    ) -> Iterator[tuple[int, bytes | Path]]:
        for one, found in self._all(items, images):
            if found is None:
                self.counts[MISSING] += 1
            elif one not in self.known:
                self.counts[UNKNOWN] += 1
            elif one in taken:
                self.counts[MORE] += 1
            else:
                taken.add(one)
                yield one, found

    def _all(
        self, items: Sequence[Items], images: Sequence[Images]
    ) -> Iterator[tuple[int, bytes | Path | None]]:
        for section in items:
            if section.picture is not None:
                yield from self._listed(section, section.id, section.picture)
        for apart in images:
            if apart.item is not None and apart.picture is not None:
                yield from self._listed(apart, apart.item, apart.picture)
            else:
                yield from self._named(apart.files)

    def _listed(
        self, section: Items | Images, item: str, picture: str
    ) -> Iterator[tuple[int, bytes | Path | None]]:
        """Pictures that the rows of a table hold or name."""

        def cells(reader: Reader) -> list[Cell]:
            return [reader.id("item", item), Cell("picture", reader.raw(picture))]

        shelf = Shelf(self.root, section.picture_folder)
        last: tuple[int, str] | None = None  # a log names the same picture again and again
        for batch in read(files_of(self.root, section), section, (item, picture), cells, ROWS):
            ids = self.names.ids(batch, "item", item).to_pylist()
            for row, (one, value) in enumerate(
                zip(ids, batch.table.column("picture").to_pylist(), strict=True)
            ):
                if one is None or value is None or (one, value) == last:
                    continue
                last = (one, value)
                yield one, value if isinstance(value, bytes) else shelf.found(str(value), batch, row, picture)

    def _named(self, patterns: Sequence[str]) -> Iterator[tuple[int, Path]]:
        """Picture files whose path holds the item's id."""
        ids = dict(
            zip(*(self.names.table().column(name).to_pylist() for name in ("external", "id")), strict=True)
        )
        for pattern in patterns:
            expression = as_expression(pattern)
            for path in Shelf(self.root, ".").files:
                if named := expression.fullmatch(path.relative_to(self.root).as_posix()):
                    yield ids.get(named["id"], -1), path


@dataclass(frozen=True)
class Shelf:
    """The picture files of a folder inside the data.

    Attributes:
        root: the folder of the data.
        folder: inside it.
    """

    root: Path
    folder: str

    @cached_property
    def files(self) -> list[Path]:
        """All picture files below, by path, those that are not opened last: they are refused where no other is."""
        below = (self.root / self.folder).rglob("*")
        known = (*ENDINGS, *OTHER_ENDINGS)
        found = [path for path in below if path.suffix.lower() in known and inside(self.root, path)]
        return sorted(found, key=lambda path: (path.suffix.lower() in OTHER_ENDINGS, path))

    @cached_property
    def _by_name(self) -> dict[str, Path]:
        last_first = self.files[::-1]
        return {path.stem: path for path in last_first} | {path.name: path for path in last_first}

    def found(self, value: str, batch: Batch, row: int, column: str) -> Path | None:
        """The file that a cell names: by its path, or, of an address, by its name; None: there is none.

        Raises:
            DataError: the path leads out of the folder.
        """
        is_address = "://" in value or value.startswith("//")
        text = urlsplit(value).path if is_address else value.replace("\\", "/")
        path = self.root / self.folder / text.lstrip("/")
        if not is_address and not inside(self.root, path):
            raise DataError(
                f"{batch.file}: row {batch.start + row + 1}, column {column!r}: expected a picture inside the "
                f"folder, found {value[:80]!r}, which leads out of it. Put the picture inside. {NEXT}"
            )
        if not is_address and path.is_file():
            return path
        name = PurePosixPath(unquote(text)).name
        return self._by_name.get(name)


def as_expression(pattern: str) -> re.Pattern[str]:
    """A pattern of picture files as an expression whose group ``id`` is the item's id.

    ``*`` stands for a part of a name, ``**/`` for any folders, the second ``{id}`` for the same id again.
    """
    parts = re.split(r"(\{id\}|\*\*/|\*)", pattern)
    known = {"**/": "(?:.*/)?", "*": "[^/]*"}
    made, seen = "", False
    for part in parts:
        if part == "{id}":
            made, seen = made + ("(?P=id)" if seen else "(?P<id>[^/]+?)"), True
        else:
            made += known.get(part, re.escape(part))
    return re.compile(made)


def _content(found: bytes | Path) -> bytes:
    if isinstance(found, bytes):
        return shrink(found)
    with found.open("rb") as stream:
        return shrink(stream.read(MOST_BYTES + 1))
