"""A proposal as a person reads it on a terminal."""

from __future__ import annotations

import textwrap

from dataset.adapters.guessing.guess import Proposal
from dataset.adapters.guessing.propose import Proposals
from dataset.adapters.guessing.tables import Seen

QUIET = (
    "missing", "ignore", "context", "types", "time_zone", "whole_days", "time_format", "category_separator", "files",
    "category_levels", "picture_folder", "value_scale", "relevance_scale", "grades", "first_position", "join_on",
    "separators",
)  # fmt: skip
MARGIN, KEY, COLUMN, MOST = 2, 12, 26, 116
LEAST_TO_TRAIN = {"events": "without events only the encoder, search and similar items can be trained"}


def told(found: Proposals) -> str:
    """What was found: a block per table, then what has no place, then what a person should look at."""
    parts = [_head(found), *(_block(one) for one in found.tables if one.active)]
    parts += [_unplaced(found), _questions(found)]
    return "\n\n".join(part for part in parts if part)


def _head(found: Proposals) -> str:
    listing = found.listing
    tables, pictures = len(listing.tables), len(listing.pictures)
    said = [f"{tables} table{'s' if tables != 1 else ''}"]
    if pictures:
        said.append(f"{pictures:,} picture file{'s' if pictures != 1 else ''}")
    return f"{found.root}: {', '.join(said)}"


def _block(proposal: Proposal) -> str:
    table = proposal.table
    files = (
        ", ".join(table.found.patterns) + _list(table)
        if table is not None
        else ", ".join(proposal.get("files"))
    )
    rows = f", {table.found.rows:,} rows" if table is not None and table.found.rows is not None else ""
    lines = [_cut(f"{proposal.role.upper()}  {files}{rows}: {proposal.why}")]
    for one in proposal.guesses:
        if one.key in QUIET:
            continue
        if one.key == "type_column" and proposal.get("types"):
            mapped = ", ".join(f"{said} → {kind}" for said, kind in proposal.get("types").items())
            lines.append(
                _cut(f" {_mark(one.sure)}{' ' * (MARGIN - 1)}{'type'.ljust(KEY)} {one.value}: {mapped}")
            )
            continue
        value = ", ".join(one.value) if isinstance(one.value, list | dict) else str(one.value)
        if one.key in ("time", "first_seen", "updated"):
            value += _time_words(proposal)
        short = value if len(value) <= COLUMN else value[: COLUMN - 1] + "…"
        lines.append(
            _cut(
                f" {_mark(one.sure)}{' ' * (MARGIN - 1)}{one.key.ljust(KEY)} {short.ljust(COLUMN)}  {one.why}"
            )
        )
    kept = proposal.get("context") or (proposal.left if proposal.role != "images" else [])
    if kept:
        where = "beside each event" if proposal.role == "events" else "as features, off"
        lines.append(_cut(f"{' ' * (MARGIN + 1)}{'kept'.ljust(KEY)} {', '.join(kept)}: {where}"))
    return "\n".join(lines)


def _list(table: Seen) -> str:
    """The list in the rows of the files whose parts are the rows of the table."""
    each = table.found.files.each
    return "" if each is None else f", each of {each!r}"


def _mark(sure: bool) -> str:
    """What stands before a guess that a person should look at."""
    return " " if sure else "?"


def _time_words(proposal: Proposal) -> str:
    layout = proposal.get("time_format")
    words = [] if layout in (None, "iso") else [layout]
    return (
        f" ({', '.join([*words, *(['days'] if proposal.get('whole_days') else [])])})"
        if words or proposal.get("whole_days")
        else ""
    )


def _unplaced(found: Proposals) -> str:
    off = {one.table.name: one.why for one in found.tables if not one.active and one.table is not None}
    why = {**found.unplaced, **off, **found.listing.unread}  # whole: it may say what to do
    lines = [
        textwrap.fill(
            f"{name}: {reason}", MOST, initial_indent="   ", subsequent_indent="     ", break_long_words=False
        )
        for name, reason in why.items()
    ]
    return "\n".join(["NOT PLACED", *lines]) if lines else ""


def _questions(found: Proposals) -> str:
    lines = []
    for proposal in (one for one in found.tables if one.active):
        name = proposal.table.name if proposal.table is not None else proposal.role
        lines += [f"   {name}: {doubt}" for doubt in proposal.doubts]
        lines += [f"   {name}, {one.key}: {one.why}" for one in proposal.guesses if not one.sure]
    if not found.of("events"):
        lines.append(f"   no events: {LEAST_TO_TRAIN['events']}")
    if not found.of("items") and found.of("events"):
        lines.append("   no items: what is recommended has an id and nothing else")
    return "\n".join(["LOOK AT", *map(_cut, lines)]) if lines else ""


def _cut(line: str) -> str:
    return line if len(line) <= MOST else line[: MOST - 1] + "…"
