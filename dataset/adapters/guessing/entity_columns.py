"""Which column of a table is the title, the category, the price, ... of its items, or the age of its users."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from dataset.adapters.described.joined import Joined
from dataset.adapters.guessing.category import category
from dataset.adapters.guessing.guess import Proposal, Rest
from dataset.adapters.guessing.profile import Profile
from dataset.adapters.guessing.tables import Seen, percent
from dataset.adapters.guessing.words import (
    AGE,
    ATTRIBUTE,
    CATEGORY,
    CREATED,
    DESCRIPTION,
    GONE,
    IMAGE,
    NOISE,
    NOUNS,
    PRICE,
    PRODUCT,
    QUANTITY,
    SEGMENT,
    STATE,
    TITLE,
    UPDATED,
    is_unnamed,
    tokens,
)
from dataset.pictures import ENDINGS

SHORT = 60  # characters of an attribute, on average
MOMENTS = (("first_seen", CREATED, "its name"), ("updated", UPDATED, "its name; the last row counts"))


def item_columns(proposal: Proposal, table: Seen, taken: set[str], pictures: list[Path], root: Path) -> None:
    """Add the guesses of a table of items; ``taken`` are columns that mean something else."""
    rest = Rest(proposal, _free(proposal, table, taken))
    proposal.add("lookup", _lookups(table), "what these ids stand for")
    _title(rest)
    _description(rest)
    category(rest)
    _price(rest)
    _picture(rest, pictures, root)
    _product(rest, table)
    _moments(rest, (("gone", GONE, "its name; not recommended since then"), *MOMENTS))
    described = [name for name, one in rest.free.items() if _describes(name, one)]
    rest.take("attributes", described, "short texts that repeat")
    proposal.left = [name for name in table.columns if name not in taken | proposal.used]


def _lookups(table: Seen) -> dict[str, list[str]]:
    """The columns of ids that another table explains: its file, and its column of the ids."""
    found, files = {}, table.found.files
    while isinstance(files, Joined):
        found[files.on] = [files.other.patterns[0], files.key or files.on]
        files = files.own
    return dict(reversed(found.items()))


def user_columns(proposal: Proposal, table: Seen, taken: set[str]) -> None:
    """Add the guesses of a table of users."""
    rest = Rest(proposal, _free(proposal, table, taken))
    ages = [
        name
        for name, one in rest.free.items()
        if set(tokens(name)) & AGE and one.is_number and max(one.numbers) <= 150
    ]
    if ages:
        numbers = rest.free.pop(ages[0]).numbers
        proposal.add("age", ages[0], f"its name; from {min(numbers):g} to {max(numbers):g}")
    grouped = [
        name
        for name, one in rest.free.items()
        if set(tokens(name)) & SEGMENT and one.is_text and 1 < one.distinct <= 200
    ]
    unnamed = [
        name for name, one in rest.free.items() if is_unnamed(name) and one.is_text and one.unique < 0.5
    ]
    if grouped or unnamed:
        name = (grouped or unnamed)[0]
        one, why = rest.free.pop(name), "its name" if grouped else "nothing names it; its values repeat"
        proposal.add("segment", name, f"{why}; {one.distinct} values, e.g. {one.example()}", bool(grouped))
    _moments(rest)
    proposal.left = [name for name in table.columns if name not in taken | proposal.used]


def _free(proposal: Proposal, table: Seen, taken: set[str]) -> dict[str, Profile]:
    """The columns that may still have a role: not taken, not empty, no row numbers of another program, no ids of what
    other columns say in words.
    """
    noise = [name for name in table.columns if set(tokens(name)) & NOISE and name not in taken]
    proposal.add("ignore", noise, "row numbers that another program wrote")
    taken.update(noise)
    taken |= {name for name in table.columns if any(other.startswith(f"{name}.") for other in table.columns)}
    return {name: one for name, one in table.columns.items() if name not in taken and one.cells}


def _title(rest: Rest) -> None:
    scored = []
    for place, (name, one) in enumerate(rest.free.items()):
        words = tokens(name)
        if set(words) & (set(CATEGORY) - {"class"}) and one.unique < 0.9:
            continue  # the name of a category
        is_title = bool(set(words) & (TITLE | NOUNS["item"])) and one.is_text and one.length >= 2
        foreign = (
            set(words)
            - TITLE
            - NOUNS["item"]
            - {"str", "full", "short", "en", "original", "english", "class"}
        )
        if is_title and not _is_path(one) and not _is_listing(one):
            scored.append((bool(set(words) & TITLE) - 0.6 * len(foreign) + one.unique, -place, name))
    if scored and max(scored)[0] > 0.4:
        name = max(scored)[2]
        rest.take(
            "title",
            name,
            f"its name; {rest.free[name].words:.1f} words on average, e.g. {rest.free[name].example(2)}",
        )
        return
    short = [
        name
        for name, one in rest.free.items()
        if set(tokens(name)) & DESCRIPTION and one.is_text and 1 < one.words <= 8 and not _is_listing(one)
    ]
    if short:
        rest.take("title", short[0], f"its name and length; e.g. {rest.free[short[0]].example(2)}")
        return
    known = set(CATEGORY) | IMAGE | ATTRIBUTE
    texts = [
        (one.unique, -place, name)
        for place, (name, one) in enumerate(rest.free.items())
        if one.is_text
        and 1.2 <= one.words <= 25
        and one.unique > 0.3
        and not set(tokens(name)) & known
        and not one.clock
        and not _is_listing(one)
    ]
    if texts:
        name = max(texts)[2]
        rest.take(
            "title",
            name,
            f"the text that differs most between rows, e.g. {rest.free[name].example(2)}",
            False,
        )


def _description(rest: Rest) -> None:
    texts = [
        (bool(set(tokens(name)) & DESCRIPTION) * 100 + one.words, name)
        for name, one in rest.free.items()
        if one.is_text
        and (one.words >= 8 or (set(tokens(name)) & DESCRIPTION and one.words >= 2))
        and not _is_path(one)
        and not _is_listing(one)
    ]
    if texts:
        _, name = max(texts)
        rest.take("description", name, f"{rest.free[name].words:.0f} words on average")


def _price(rest: Rest) -> None:
    scored = [
        (max(PRICE[word] for word in tokens(name) if word in PRICE) - 0.3 * len(tokens(name)), -place, name)
        for place, (name, one) in enumerate(rest.free.items())
        if set(tokens(name)) & set(PRICE)
        and one.is_money
        and not set(tokens(name)) & {"shipping", "freight", "compare", "range"}
    ]
    if scored:
        name = max(scored)[2]
        numbers = rest.free[name].numbers or [0.0]
        rest.take("price", name, f"its name; from {min(numbers):g} to {max(numbers):g}")


def _product(rest: Rest, table: Seen) -> None:
    coarse = set(CATEGORY) - {"group", "family", "collection"}
    own = NOUNS["item"] | {"parent", "spu"}
    named = [
        name
        for name, one in rest.free.items()
        if (words := set(tokens(name))) & PRODUCT and words & own and not words & coarse
        if one.is_id and one.unique > 0.02
    ]
    if not named:
        named = [
            name
            for name in rest.free
            if tokens(name) in (("handle",), ("parent",), ("spu",)) and rest.free[name].is_id
        ]
    if named:
        rest.take(
            "product",
            named[0],
            f"its name; {rest.free[named[0]].distinct:,} values in {table.columns[named[0]].rows:,} rows",
        )


def _moments(rest: Rest, moments: tuple[tuple[str, frozenset[str], str], ...] = MOMENTS) -> None:
    for key, words, why in moments:
        for name, one in list(rest.free.items()):
            if one.clock is not None and set(tokens(name)) & words and rest.proposal.get(key) is None:
                layout = rest.proposal.get("time_format")
                if layout is None or layout == one.clock.layout:
                    rest.take(key, name, f"{why}; {one.clock.first:%Y-%m-%d} to {one.clock.last:%Y-%m-%d}")
                    if layout is None:
                        rest.proposal.add("time_format", one.clock.layout, f"e.g. {one.example(1)}")


def _picture(rest: Rest, pictures: list[Path], root: Path) -> None:
    for name, one in rest.free.items():
        if one.is_bytes:
            rest.take("picture", name, "encoded pictures, by their first bytes")
            return
    named = [
        name
        for name, one in rest.free.items()
        if one.is_text and (_is_path(one) or set(tokens(name)) & IMAGE and one.words < 1.5)
    ]
    files = {path.name for path in pictures} | {path.stem for path in pictures}
    for name in named:
        cells = [str(cell) for cell in rest.free[name].cells[:2000]]
        there = sum(_named(cell) in files for cell in cells) / len(cells)
        if there > 0:
            folder = _picture_folder(cells, pictures, root)
            rest.take(
                "picture",
                name,
                f"paths; {percent(there)} of the files are there, e.g. {rest.free[name].example(1)}",
            )
            if folder != ".":
                rest.proposal.add("picture_folder", folder, "where these paths begin")
            return
    for name in named:
        said = [_named(str(cell)) for cell in rest.free[name].cells[:200]]
        if sum(one.lower().endswith(ENDINGS) for one in said) > len(said) / 2:
            rest.proposal.doubts.append(
                f"{name!r} names pictures, none is here: put the files beside it, e.g. {said[0]}"
            )
            return


def _picture_folder(cells: list[str], pictures: list[Path], root: Path) -> str:
    """The folder from which most paths lead to a file."""
    if any((root / cell.lstrip("/")).is_file() for cell in cells[:50]):
        return "."
    tops = Counter(
        path.relative_to(root).parts[0] for path in pictures if len(path.relative_to(root).parts) > 1
    )
    return tops.most_common(1)[0][0] if tops else "."


def _named(text: str) -> str:
    path = urlsplit(text).path if "://" in text else text.replace("\\", "/")
    return PurePosixPath(unquote(path)).name


def _is_listing(one: Profile) -> bool:
    """Whether the texts are lists of objects or numbers, or of times."""
    some = [str(cell) for cell in one.cells[:200]]
    return sum(bool(re.match(r"\[[{\d-]|\d{4}-\d\d-\d\d", text)) for text in some) > len(some) / 2


def _is_path(one: Profile) -> bool:
    some = [str(cell).lower() for cell in one.cells[:200]]
    address = sum(bool(re.match(r"https?://", text)) for text in some)
    return bool(some) and (sum(_named(text).endswith(ENDINGS) for text in some) + address) / len(some) > 0.5


def _describes(name: str, one: Profile) -> bool:
    """Whether a column is a short text that several rows share."""
    if (
        not one.is_text
        or one.clock is not None
        or _is_path(one)
        or _is_listing(one)
        or set(tokens(name)) & (IMAGE | QUANTITY | STATE)
    ):
        return False
    known = bool(set(tokens(name)) & ATTRIBUTE)
    is_word = one.length <= SHORT and one.distinct > 1 and one.unique <= (0.9 if known else 0.5)
    return is_word and not (one.is_id and one.unique > 0.3 and not known)
