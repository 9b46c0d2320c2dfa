"""What an item's content shows beyond its fields, in the directions in which users differ: a space of tastes.

Most of what vectors and pictures hold is also said by category and attributes, which tastes know by name. What is
left of each space is what no field says; its strongest numbers, of all spaces side by side, are where directions are
looked for (docs/log/ranker.md#directions-in-what-no-field-says).

Legend: M items, F fields, D numbers of a space, K of the content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.properties import OWN, Basis, Properties

PRIOR = 100.0  # items of the mean by which a value's mean is smoothed
SWEEPS = 5  # over the fields, each explaining what the others leave
WIDTH = 32  # numbers that are kept of all spaces


@dataclass(frozen=True)
class Part:
    """What one space adds to the content: rows @ turn, less what the fields say.

    Attributes:
        turn: float32 (D, K), of the last D numbers of the space.
        centre, price: float32 (K), of every item, and by its price.
        values: of each field float32 (values, K); no values of a field that explains nothing.
    """

    turn: np.ndarray
    centre: np.ndarray
    price: np.ndarray
    values: tuple[np.ndarray, ...]

    def of(self, rows: np.ndarray, properties: Properties) -> np.ndarray:
        """Float32 (M, K); zeros for items that have nothing in the space."""
        said = self.centre + properties.spaces["price"] * self.price
        for codes, values in zip(properties.codes.T, self.values, strict=True):
            if len(values):
                named = codes[:, None] >= 0
                said = said + np.where(named, values[codes], 0)
        own = rows[:, rows.shape[1] - len(self.turn) :]
        left: np.ndarray = np.where(own.any(axis=1, keepdims=True), own @ self.turn - said, 0).astype(
            np.float32
        )
        return left

    def turned(self, by: np.ndarray) -> Part:
        """The same in other numbers, ``by`` float (K, L)."""
        turn, centre, price, *values = (
            (one @ by).astype(np.float32) for one in (self.turn, self.centre, self.price, *self.values)
        )
        return Part(turn, centre, price, tuple(values))

    @classmethod
    def left_by_fields(cls, rows: np.ndarray, properties: Properties) -> Part:
        """What smoothed means of the fields' values leave of a space, K = D, of mean squared length 1."""
        there = rows.any(axis=1)
        known, codes = rows[there].astype(np.float64), properties.codes[there]
        price = properties.spaces["price"][there, 0].astype(np.float64)
        centre = known.mean(axis=0)
        left = known - centre
        slope = np.zeros(rows.shape[1])
        means = [
            np.zeros((0 if field in OWN else len(values), rows.shape[1]))
            for field, values in zip(properties.fields, properties.values, strict=True)
        ]
        for _ in range(SWEEPS):
            left += np.outer(price, slope)
            slope = price @ left / (price @ price + PRIOR)
            left -= np.outer(price, slope)
            for number, mean in enumerate(means):
                if len(mean):
                    own = codes[:, number]
                    said = own >= 0
                    left[said] += mean[own[said]]
                    mean[:] = _means(own[said], left[said], len(mean))
                    left[said] -= mean[own[said]]
        length = max(float(np.sqrt(np.square(left).sum(axis=1).mean())), 1e-9)
        whole = cls(np.eye(rows.shape[1]), centre, slope, tuple(means))
        return whole.turned(np.eye(rows.shape[1]) / length)


@dataclass(frozen=True)
class Content:
    """The content of items, from some of their spaces.

    Attributes:
        parts: of each space, by name.
    """

    parts: Mapping[str, Part]

    @classmethod
    def of(cls, properties: Properties, spaces: Sequence[str], last: int = 0) -> Content:
        """The strongest numbers, WIDTH at most, of what the fields leave of these spaces, which weigh alike.

        Of each space its last numbers, so many; 0: all.
        """
        parts = {name: Part.left_by_fields(properties.spaces[name][:, -last:], properties) for name in spaces}
        every = np.concatenate(
            [one.of(properties.spaces[name], properties) for name, one in parts.items()], axis=1
        )
        known = every[every.any(axis=1)]
        basis = Basis.of(known - known.mean(axis=0) if len(known) else known, WIDTH)
        scale = np.sqrt(basis.directions.shape[1])  # a number has the mean square 1
        bounds = np.cumsum([0, *(one.turn.shape[1] for one in parts.values())])
        return cls(
            {
                name: one.turned(basis.directions[start:stop] * scale)
                for (name, one), start, stop in zip(parts.items(), bounds[:-1], bounds[1:], strict=True)
            }
        )

    def turned(self, by: np.ndarray) -> Content:
        """The same in other numbers, ``by`` float32 (K, L)."""
        return Content({name: one.turned(by) for name, one in self.parts.items()})

    def rows(self, properties: Properties) -> np.ndarray:
        """The content of all items, float32 (M, K)."""
        return sum(  # type: ignore[return-value]
            one.of(properties.spaces[name], properties) for name, one in self.parts.items()
        )


def _means(code: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Means of rows by code, smoothed towards zero, float64 (count, D)."""
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, code, rows)
    return sums / (np.bincount(code, minlength=count) + PRIOR)[:, None]
