"""A guess, and a table of guesses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dataset.adapters.guessing.profile import Profile
from dataset.adapters.guessing.tables import Seen


@dataclass(frozen=True)
class Guess:
    """One key of ``moon.toml``.

    Attributes:
        key, value: as they are written.
        why: the evidence.
        sure: whether a person need not look.
    """

    key: str
    value: Any
    why: str
    sure: bool = True


@dataclass
class Proposal:
    """One table of ``moon.toml``.

    Attributes:
        role: "items", "events", ...
        table: what it was made from; None: picture files.
        guesses: its keys, but for the files and their layout.
        why: the evidence of the role.
        active: False: it is written as a remark.
        left: columns that have no role.
        doubts: what a person should know besides.
    """

    role: str
    table: Seen | None
    guesses: list[Guess] = field(default_factory=list)
    why: str = ""
    active: bool = True
    left: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def add(self, key: str, value: Any, why: str, sure: bool = True) -> None:
        """Add a guess, unless its value is empty."""
        if value not in (None, [], {}, "", 0) or isinstance(value, float):
            self.guesses.append(Guess(key, value, why, sure))

    def get(self, key: str) -> Any:
        """The value guessed for a key; None: none."""
        return next((one.value for one in self.guesses if one.key == key), None)

    @property
    def used(self) -> set[str]:
        """The columns that have a role."""
        found: set[str] = set()
        for one in self.guesses:
            if one.key in NOT_COLUMNS:
                continue
            found.update([one.value] if isinstance(one.value, str) else one.value)
        return found


@dataclass
class Rest:
    """The columns of a table that have no role yet.

    Attributes:
        proposal: what takes them.
        free: by name; a column that is taken leaves.
    """

    proposal: Proposal
    free: dict[str, Profile]

    def take(self, key: str, value: str | list[str], why: str, sure: bool = True) -> None:
        """Make a column, or several, the value of a key."""
        self.proposal.add(key, value, why, sure)
        for name in [value] if isinstance(value, str) else value:
            self.free.pop(name, None)


NOT_COLUMNS = (
    "files", "time_format", "whole_days", "time_zone", "type", "types", "value_scale", "category_separator",
    "category_levels", "picture_folder", "relevance_scale", "grades", "missing", "ignore", "encoding", "delimiter",
    "header", "quote", "context", "first_position", "join", "escape",
    "separators", "unrated", "lookup", "join_key",
)  # fmt: skip
