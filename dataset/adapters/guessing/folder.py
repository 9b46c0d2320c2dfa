"""The tables of a folder: which files belong together, and which are pictures, notes or neither."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from dataset.adapters.described.description import FILE
from dataset.adapters.described.files import PACKED, Files, format_of, is_tabbed, opened
from dataset.adapters.described.joined import Joined
from dataset.contracts import DataError
from dataset.pictures import ENDINGS, FORMATS, OTHER_ENDINGS

NOTES = re.compile(r"readme|licen[cs]e|changelog|requirements|notes?\b", re.IGNORECASE)
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
PARTED = re.compile(
    rf"\d+|(?<![a-z])(train|test|valid|validation|val|dev|eval|part|chunk|shard|{MONTHS})(?![a-z])"
)
DELIMITERS = (",", "\t", ";", "|", "::")
SEARCHED = 64 * 1024 * 1024  # bytes of a text file that are searched for a quote with a backslash
OTHERS = {
    OTHER_ENDINGS: f"a picture that is not opened: save it as {', '.join(FORMATS)}",
    (".xlsx", ".xls", ".ods"): "a workbook: save each of its sheets as csv",
    (".zip", ".tar", ".tgz", ".7z", ".rar"): "an archive: unpack it here",
    (".bz2", ".xz", ".zst"): "packed: unpack it, or pack it as .gz",
    (".pkl", ".pickle"): "a pickle, which may run any code: write parquet, with to_parquet of pandas",
    (".npy", ".npz", ".h5", ".hdf5", ".feather", ".arrow", ".mat"): "write it as parquet",
    (".db", ".sqlite", ".sqlite3", ".sql"): "a database: export its tables as csv",
}  # endings -> what it is and what to do
HEAD = 64 * 1024  # bytes of a text file that are looked at for its layout
SAMPLED_FILES = 5
ALIKE = 0.9  # share of the cells below a first one of their shape, digits aside, by which it names no column


@dataclass
class Found:
    """A table of the folder.

    Attributes:
        patterns: its files, as ``moon.toml`` writes them.
        files: the same, to read.
        columns: name -> DuckDB type, of its first file.
        rows: in all, about; None: not known without reading them all.
        bytes: of all files.
    """

    patterns: list[str]
    files: Files | Joined
    columns: dict[str, str]
    rows: int | None
    bytes: int

    @property
    def name(self) -> str:
        """What to call it: its first pattern."""
        return self.patterns[0]


@dataclass
class Listing:
    """What is in a folder.

    Attributes:
        tables: of rows.
        pictures: picture files.
        unread: files that are neither, and why they were not read.
    """

    tables: list[Found] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)


def look(root: Path) -> Listing:
    """List a folder and all below it.

    Raises:
        DataError: no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with your data, found no such folder.")
    found = Listing()
    groups: dict[tuple, list[Path]] = {}
    layouts: dict[Path, Files] = {}
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root)
        if (
            not path.is_file()
            or any(part.startswith((".", "_")) for part in inner.parts)
            or path.name == FILE
        ):
            continue
        if path.suffix.lower() in ENDINGS:
            found.pictures.append(path)
        elif format_of(path) is None or (
            path.suffix.lower() in (".txt", ".dat", ".json") and NOTES.search(path.name)
        ):
            found.unread[inner.as_posix()] = _no_table(path) if format_of(path) is None else "a note"
        else:
            try:
                layouts[path] = layout(root, inner.as_posix())
                columns = tuple(layouts[path].columns(path))
            except DataError as error:
                found.unread[inner.as_posix()] = fault(error)
                continue
            if path.suffix.lower() in (".txt", ".dat") and len(columns) < 2:
                found.unread[inner.as_posix()] = _not_columns(path)
                continue
            groups.setdefault((_family(inner), format_of(path), columns), []).append(path)
    for paths in groups.values():
        found.tables.append(_table(root, paths, layouts[paths[0]]))
    return found


def _no_table(path: Path) -> str:
    """What a file is that cannot be read, and how it becomes one that can."""
    ending = Path(path.name.lower().removesuffix(PACKED)).suffix
    known = next((said for endings, said in OTHERS.items() if ending in endings), None)
    if NOTES.search(path.name):
        return "a note"
    return known or "no table: read are parquet, csv, tsv, txt, dat, JSON and XML, each also gzipped"


def fault(error: DataError) -> str:
    """What is wrong with a file, without its name."""
    return str(error).partition(": ")[2]


def layout(root: Path, name: str) -> Files:
    """How a file is to be read: delimiter, quotes, header and encoding of a csv."""
    path = root / name
    plain = Files(root, (name,))
    if format_of(path) != "csv":
        return plain
    lines, encoding = _first_lines(path)
    usual = "\t" if is_tabbed(path) else ","
    delimiter = _delimiter(lines, usual)
    if delimiter == usual and path.suffix.lower() in (".txt", ".dat") and _is_spaced(lines):
        delimiter = " "
    quote = (
        '"'
        if any(f'{delimiter}"' in line or line.startswith('"') for line in lines) or delimiter != "\t"
        else ""
    )
    return Files(
        root,
        (name,),
        None if delimiter == usual else delimiter,
        quote,
        _has_header(lines, delimiter),
        encoding,
        "\\" if quote and _is_escaped(path, delimiter) else None,
    )


def _is_spaced(lines: list[str]) -> bool:
    """Whether single spaces cut all rows into the same number of cells, which no comma or tab does."""
    counts = {len(line.strip().split(" ")) for line in lines}
    return len(lines) > 1 and len(counts) == 1 and counts != {1} and not any("," in line for line in lines)


def _is_escaped(path: Path, delimiter: str) -> bool:
    """Whether quotes inside cells have a backslash before them: neither the next cell nor a new row follows."""
    inside = re.compile(rb'\\"(?![\r\n]|$|' + re.escape(delimiter.encode()) + rb")")
    with opened(path) as stream:
        return inside.search(stream.read(SEARCHED)) is not None


def _first_lines(path: Path) -> tuple[list[str], str]:
    """The first lines of a text that are not empty, 200 at most, and its encoding."""
    with opened(path) as stream:
        head = stream.read(HEAD)
    encoding = _encoding(head)
    text = head.decode(encoding, errors="replace").lstrip("\ufeff")
    whole = text.splitlines()[: -1 if len(head) == HEAD else None]
    return [line for line in whole if line.strip()][:200], encoding


def _not_columns(path: Path) -> str:
    """Why a text has no columns: nothing cuts its rows, or not all into as many cells; and what to write instead."""
    lines, _ = _first_lines(path)
    counts = {delimiter: [len(_cut(line, delimiter)) for line in lines] for delimiter in (*DELIMITERS, " ")}
    usual = {delimiter: sorted(found)[len(found) // 2] if found else 0 for delimiter, found in counts.items()}
    best = max(usual, key=lambda one: usual[one])
    other = next((row for row, count in enumerate(counts[best]) if count != usual[best]), None)
    if usual[best] < 2 or other is None:
        return "a text without columns: no comma, tab, semicolon or bar cuts its rows"
    first, second = sorted((other, counts[best].index(usual[best])))
    cells = counts[best]
    found = f"no table: {best!r} cuts row {first + 1} into {cells[first]} cells, row {second + 1} into "
    found += f"{cells[second]}"
    if all(re.fullmatch(r"[\d ]+", line) for line in lines):
        pairs = f"awk '{{for (i = 2; i <= NF; i++) print $1 \"\\t\" $i}}' {path.name} > events.tsv"
        return f"{found}. Is each row a user and their items? Then write a row for each of them: {pairs}"
    return (
        f"{found}. Expected as many in each; what a row above says of those below it, repeat in each of them"
    )


def _encoding(head: bytes) -> str:
    """UTF-8 unless the bytes say otherwise; then what Windows writes."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    cut = head[:-4] if len(head) == HEAD else head
    try:
        cut.decode("utf-8")
    except UnicodeDecodeError as error:
        return "utf-8" if error.start >= len(cut) - 4 else "cp1252"
    return "utf-8"


def _delimiter(lines: list[str], usual: str) -> str:
    """The delimiter that cuts the first rows into the same number of cells, most of them.

    Some programs end every row but the first with a delimiter: no cell follows it.
    """
    best, most = usual, 1.0
    for delimiter in dict.fromkeys((usual, *DELIMITERS)):
        rows = [_cut(line, delimiter) for line in lines[:50]]
        if not rows or len(rows[0]) < 2:
            continue
        counts = [len(row) - (len(row) == len(rows[0]) + 1 and not row[-1]) for row in rows]
        score = sum(count == counts[0] for count in counts) / len(counts) * counts[0]
        if score > most:
            best, most = delimiter, score
    return best


def _cut(line: str, delimiter: str) -> list[str]:
    if len(delimiter) > 1:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])


def _has_header(lines: list[str], delimiter: str) -> bool:
    """Whether the first row names columns: no number, address or list in it, no name twice, others below.

    A cell that is as those below but for its digits (``N55528`` above ``N19639``) is none of a header.
    """
    rows = [_cut(line, delimiter) for line in lines[:50]]
    if not rows:
        return True
    first = [cell.strip() for cell in rows[0]]
    if any(re.fullmatch(r"[-+]?[\d.,]+([eE][-+]?\d+)?", cell) for cell in first):
        return False
    if any(re.match(r"https?://|\[(\]|[\"'{\d-].*\])$|\{.*\}$", cell) for cell in first):
        return False
    for place, cell in enumerate(first):
        below = [_shape(row[place]) for row in rows[1:] if len(row) > place]
        if "9" in _shape(cell) and len(below) > 1 and below.count(_shape(cell)) >= ALIKE * len(below):
            return False
    return len(set(first)) == len(first) or len(rows) == 1


def _shape(cell: str) -> str:
    return re.sub(r"\d+", "9", cell.strip())


def _family(inner: Path) -> str:
    """The name of a file without what numbers its part: dates, digits, partitions, train and test."""
    folders = [part for part in inner.parent.parts if "=" not in part]
    stem = inner.name.lower()
    if len(folders) < len(inner.parent.parts):
        stem = "*" + "".join(Path(stem.removesuffix(PACKED)).suffixes[-1:])  # files of a partition
    return "/".join([*folders, re.sub(r"[*_.\s-]+", "*", PARTED.sub("*", stem))])


def _table(root: Path, paths: list[Path], layout: Files) -> Found:
    names = [path.relative_to(root).as_posix() for path in paths]
    patterns = _patterns(root, paths) if len(paths) > 1 else names
    files = replace(layout, patterns=tuple(patterns))
    return Found(
        patterns, files, files.columns(paths[0]), _rows(paths), sum(path.stat().st_size for path in paths)
    )


def _patterns(root: Path, paths: list[Path]) -> list[str]:
    """One pattern that matches these files and no others, or else all their names."""
    names = [path.relative_to(root) for path in paths]
    ending = "".join(re.findall(r"\.(?:[a-z]+)(?:\.gz)?$", names[0].name.lower())) or names[0].suffix
    parents = {name.parent for name in names}
    start = names[0].name
    for other in names[1:]:
        while not other.name.startswith(start):
            start = start[:-1]
    top = Path(*[part for part in names[0].parent.parts if "=" not in part])
    guesses = [f"{names[0].parent.as_posix()}/{start}*{ending}"] if len(parents) == 1 else []
    guesses += [f"{top.as_posix()}/**/*{ending}"]
    for guess in (guess.removeprefix("./") for guess in guesses):
        if sorted(path for path in root.glob(guess) if path.is_file()) == sorted(paths):
            return [guess]
    return [name.as_posix() for name in names]


def _rows(paths: list[Path]) -> int | None:
    if format_of(paths[0]) == "parquet" and not paths[0].name.endswith(PACKED):
        return sum(pq.read_metadata(path).num_rows for path in paths)
    return None


def sampled(paths: list[Path]) -> list[Path]:
    """At most SAMPLED_FILES of the files, from the first to the last."""
    if len(paths) <= SAMPLED_FILES:
        return paths
    return [paths[round(place * (len(paths) - 1) / (SAMPLED_FILES - 1))] for place in range(SAMPLED_FILES)]
