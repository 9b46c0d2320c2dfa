"""What the tags of a Field say about how a model reads it, and the refusal of tags that nobody knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from moonstore.errors import StoreError

ROLES = ("user", "candidate", "query", "request", "behaviour")
KINDS = ("category", "categories", "number", "vector", "timestamp", "boolean")
CATEGORICAL = ("category", "categories")


@dataclass(frozen=True)
class Option:
    """A tag beside ``kind`` and ``role``.

    Attributes:
        kinds: of the features that it can be said of.
        pattern: regular expression of its values.
        values: what it accepts, in words.
    """

    kinds: tuple[str, ...]
    pattern: str
    values: str


COUNT = (r"[1-9]\d{0,8}", "a whole number from 1")
OPTIONS: Mapping[str, Option] = {
    "hashed": Option(CATEGORICAL, *COUNT),  # rows of its table; each category falls into one by its hash
    "min_count": Option(CATEGORICAL, *COUNT),  # categories seen fewer times in training are unknown
    "transform": Option(("number",), "log|standard|buckets", "log, standard or buckets"),
    # The number, or the age in seconds, that a null stands for.
    "null": Option(("number", "timestamp"), r"0|[1-9]\d{0,8}", "a whole number from 0"),
    "buckets": Option(("number",), r"[2-9]|[1-9]\d{1,3}", "a whole number from 2 to 9999"),
    "project": Option(("vector",), *COUNT),  # width of a learned projection
}


def tagged_kind(where: str, tags: Mapping[str, str], kinds: tuple[str, ...]) -> str:
    """The kind that the tags say, or the first of those its type can be.

    Raises:
        StoreError: it is none of them.
    """
    kind = tags.get("kind", kinds[0])
    if kind not in KINDS:
        raise StoreError(
            f"{where}: tag kind: expected one of {', '.join(KINDS)}, found {kind!r}{_meant(kind, KINDS)}"
        )
    if kind not in kinds:
        raise StoreError(
            f"{where}: tag kind: expected {' or '.join(kinds)} for its type, found {kind}. "
            f"Change the tag or the type of the Field."
        )
    return kind


def tagged_roles(where: str, tags: Mapping[str, str], role: str) -> tuple[str, ...]:
    """The roles that the tags say, or that of the view; ``behaviour`` can be said of features of items alone.

    Raises:
        StoreError: a role is unknown, or the view cannot have it.
    """
    roles = tuple(one.strip() for one in tags.get("role", role).split(","))
    possible = (role, "behaviour") if role == "candidate" else (role,)
    for one in roles:
        if one not in ROLES:
            raise StoreError(
                f"{where}: tag role: expected some of {', '.join(ROLES)}, found {one!r}{_meant(one, ROLES)}"
            )
        if one not in possible:
            raise StoreError(
                f"{where}: tag role: expected {' or '.join(possible)}, as its view's features are of the {role}, "
                f"found {one}."
            )
    return tuple(dict.fromkeys(roles))


def options_of(where: str, tags: Mapping[str, str], kind: str) -> dict[str, str]:
    """The tags beside kind and role.

    Raises:
        StoreError: a tag is unknown, is not of this kind, or has a value it does not accept.
    """
    options = {name: value for name, value in tags.items() if name not in ("kind", "role")}
    known = ("kind", "role", *OPTIONS)
    for name, value in options.items():
        if name not in OPTIONS:
            raise StoreError(
                f"{where}: expected tags of {', '.join(known)}, found {name!r}{_meant(name, known)}"
            )
        option = OPTIONS[name]
        if kind not in option.kinds:
            raise StoreError(
                f"{where}: tag {name} is for features of kind {' or '.join(option.kinds)}, not {kind}."
            )
        if re.fullmatch(option.pattern, value) is None:
            raise StoreError(f"{where}: tag {name}: expected {option.values}, found {value!r}.")
    if "null" in options and options.get("transform") == "buckets":
        raise StoreError(f"{where}: tag null is not for buckets: there a null has a vector of its own.")
    return options


def _meant(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that says which of the known names was probably meant."""
    close = get_close_matches(name, list(known), 1)
    return f". Did you mean {close[0]}?" if close else "."
