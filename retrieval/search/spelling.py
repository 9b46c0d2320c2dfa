"""Words of a catalogue that are written almost like a typed word: its other forms, and what it was mistyped for.

No stemmer or dictionary of a language is needed: ``lights`` is found for ``light`` because they share most of their
groups of two and three letters.

Legend: W words, G groups of letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"[^\W_]+")  # letters and digits of any script
SIZES = (2, 3)  # letters in a group
LIKENESS = 0.6  # the least likeness of a word that stands for another


def folded(text: str | None) -> str:
    """A text without case and accents: ``Café`` and ``CAFE`` become ``cafe``."""
    letters = unicodedata.normalize("NFKD", (text or "").casefold())
    return letters if letters.isascii() else "".join(one for one in letters if not unicodedata.combining(one))


def words_of(text: str | None) -> list[str]:
    """The words of a text in their order, folded."""
    return WORD.findall(folded(text))


class Spelling:
    """Finds words by their letters.

    Args:
        words: W distinct folded words.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._row = {word: row for row, word in enumerate(words)}
        self._letters = np.zeros(len(words), dtype=np.float32)  # groups of letters of each word
        with_group: dict[str, list[int]] = {}
        for row, word in enumerate(words):
            groups = _groups(word)
            self._letters[row] = len(groups)
            for group in groups:
                with_group.setdefault(group, []).append(row)
        self._with_group = {group: np.array(rows, np.int64) for group, rows in with_group.items()}

    def alike(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """The word itself, if there is one, and those written almost like it.

        The likeness of two words is twice the number of the groups they share over the sum of theirs (Dice). A word
        with a digit in it is like no other: sizes and models that differ in one digit are different things.

        Returns:
            rows int64 ascending and likeness float32 of LIKENESS to 1, which only the word itself has.
        """
        itself = self._row.get(word)
        if any(one.isdigit() for one in word):
            row = [] if itself is None else [itself]
            return np.array(row, np.int64), np.ones(len(row), np.float32)
        groups = _groups(word)
        found = [self._with_group[group] for group in groups if group in self._with_group]
        shared = np.bincount(np.concatenate([np.empty(0, np.int64), *found]), minlength=len(self._row))
        likeness = (2 * shared / (len(groups) + self._letters)).astype(np.float32)
        rows = np.flatnonzero(likeness >= LIKENESS)
        return rows, likeness[rows]


def _groups(word: str) -> set[str]:
    """The groups of letters of a word, whose beginning and end count as letters."""
    whole = f" {word} "
    return {whole[start : start + size] for size in SIZES for start in range(len(whole) - size + 1)}
