"""A proposal as ``moon.toml``: every guess with its evidence behind it as a remark."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from dataset.adapters.described.joined import Joined
from dataset.adapters.guessing.guess import Proposal
from dataset.adapters.guessing.propose import Proposals

SEAL = re.compile(r"^# seal ([0-9a-f]{12})$", flags=re.MULTILINE)
UNSURE = "NOT SURE: "
WIDE = 44  # characters before a remark


def toml(found: Proposals, folder: str = ".") -> str:
    """The text of ``moon.toml``.

    Args:
        found: the proposal.
        folder: of the data, from that of the file.
    """
    parts = [_data(found, folder)]
    for proposal in found.tables:
        parts.append(_table(proposal))
    parts.append(_unplaced(found))
    body = "\n\n".join(part for part in parts if part) + "\n"
    head = (
        f"# What is what in this folder, as 'moon init' sees it; behind each # stands the evidence.\n"
        f"# Correct what is wrong, then run: moon demo --data .   All keys: docs/your_data.md\n# seal {_seal(body)}\n"
    )
    return head + body


def is_sealed(text: str) -> bool:
    """Whether a ``moon.toml`` is as ``moon init`` wrote it, not changed by hand."""
    found = SEAL.search(text)
    return found is not None and _seal(text[found.end() + 1 :]) == found[1]


def _seal(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def _data(found: Proposals, folder: str) -> str:
    name = re.sub(r"[^a-z0-9_]+", "_", Path(found.root).resolve().name.lower()).strip("_") or "data"
    lines = ["[data]", _line("name", name, "of the folder")]
    if folder != ".":
        lines.append(_line("folder", folder, "where the files are"))
    if found.of("events"):
        lines.append(
            _line("unknown_items", "keep", 'events of items that no table has: "keep" or "set aside"')
        )
        lines.append(_line("unknown_users", "keep", "the same for users"))
        counts = any(one.table is not None and one.table.counter for one in found.of("events"))
        last = "each user's orders are counted: of two users nobody knows who came first"
        lines += [
            "",
            "[split]" if counts else "# [split]",
            _line("protocol", "last", last)
            if counts
            else _line("# protocol", "time", 'or "last", "users" or "given"; left out: chosen from the data'),
            _line(
                "# repeats", True, "recommend what a user took before, too; left out: chosen from the data"
            ),
        ]
    return "\n".join(lines)


def _table(proposal: Proposal) -> str:
    lines = [f"[[{proposal.role}]]".ljust(WIDE) + f"# {proposal.why}"]
    table = proposal.table
    if table is not None:
        files = table.found.files
        while isinstance(files, Joined):
            files = files.own
        rows = (
            f"{table.found.bytes / 1e6:,.1f} MB" if table.found.rows is None else f"{table.found.rows:,} rows"
        )
        lines.append(_line("files", table.found.patterns, f"{rows}, {len(table.columns)} columns"))
        if files.delimiter is not None:
            lines.append(_line("delimiter", files.delimiter, "it cuts the rows into equal numbers of cells"))
        if files.quote != '"':
            lines.append(_line("quote", files.quote, "no cell is quoted"))
        if not files.header:
            lines.append(_line("header", False, "the first row is data"))
        if files.escape is not None:
            lines.append(_line("escape", files.escape, "stands before quotes inside a cell"))
        if files.separators:
            lines.append(_line("separators", list(files.separators), f"cut the cells of {files.each!r}"))
        if files.encoding != "utf-8":
            lines.append(_line("encoding", files.encoding, "the bytes are not UTF-8"))
    lines += [
        _line(one.key, one.value, one.why if one.sure else UNSURE + one.why) for one in proposal.guesses
    ]
    lines += [f"# {UNSURE}{doubt}" for doubt in proposal.doubts]
    if proposal.left and proposal.role in ("items", "users", "queries"):
        lines.append(f"# left over, kept as features, off: {', '.join(proposal.left)}")
        lines.append(
            f"# features = {json.dumps(proposal.left[:1], ensure_ascii=False)}".ljust(WIDE)
            + "# switches one on"
        )
    if not proposal.active:
        return "\n".join(f"# {line}" for line in lines)
    return "\n".join(lines)


def _unplaced(found: Proposals) -> str:
    lines = [f"#   {name}: {why}" for name, why in {**found.unplaced, **found.listing.unread}.items()]
    return "\n".join(["# Not placed:", *lines]) if lines else ""


def _line(key: str, value: Any, why: str) -> str:
    text = f"{key} = {_value(value)}"
    return f"{text.ljust(WIDE - 1)} # {_remark(why)}" if why else text


def _remark(why: str) -> str:
    """One line, without characters that a remark may not hold."""
    return re.sub(r"[\x00-\x08\x0a-\x1f\x7f]+", " ", why)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)
