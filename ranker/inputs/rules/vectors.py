"""Vectors of the store: dense numbers as they are, in units of their usual size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dataset.contracts import DataError
from ranker.inputs.rules.numbers import CLIP
from ranker.inputs.rules.rule import Rule, finite


@dataclass(frozen=True)
class Vector:
    """The components of a vector divided by their root mean square over the training data, zeros where null.

    Attributes:
        feature: its column.
        width: how many components it has.
        scale: the root mean square.
        absent: whether the training data hold nulls, which then have an indicator.
        project: width of the projection that the model learns; 0: none.
    """

    feature: str
    width: int
    scale: float
    absent: bool = False
    project: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Each component, and whether there is no vector."""
        components = tuple(f"{self.feature}[{place}]" for place in range(self.width))
        return (*components, f"no {self.feature}") if self.absent else components

    def numbers(self, column: pa.Array, time_us: np.ndarray) -> np.ndarray:
        """Float32 [N, width], cut at CLIP root mean squares; and the indicator.

        Raises:
            DataError: a vector has another width than in training, or an infinite component.
        """
        matrix, missing = components(column, self.feature, self.width)
        even = (matrix / self.scale).clip(-CLIP, CLIP)
        return (np.column_stack([even, missing]) if self.absent else even).astype(np.float32)


class VectorLearner:
    """Finds width and usual size of a vector's components."""

    def __init__(self, feature: str, project: int = 0) -> None:
        self.feature, self.project = feature, project
        self.width, self.squares, self.known, self.nulls = 0, 0.0, 0, 0

    def see(self, column: pa.Array, time_us: np.ndarray) -> None:
        """Add the vectors of a column."""
        known = column.drop_null()
        if len(known) and not self.width:
            self.width = int(known.value_lengths()[0].as_py())
        matrix, missing = components(column, self.feature, self.width)
        self.squares += float(np.square(matrix).sum())
        self.known, self.nulls = self.known + int((~missing).sum()), self.nulls + int(missing.sum())

    def learned(self) -> Rule:
        """Width, root mean square, and whether there were nulls."""
        size = (self.squares / max(self.known * self.width, 1)) ** 0.5
        scale = size if size > 1e-6 else 1.0
        return Vector(self.feature, self.width, scale, bool(self.nulls and self.known), self.project)


def components(column: pa.Array, feature: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The vectors as float64 [N, width], zeros where null, and which are null, bool [N].

    Raises:
        DataError: a vector has another width, or a component that is null, NaN or infinite.
    """
    missing = column.is_null().to_numpy(zero_copy_only=False)
    known = column.drop_null()
    lengths = known.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != width).any():
        other = np.flatnonzero(~missing)[lengths != width]
        raise DataError(
            f"column {feature}: expected vectors of width {width}, found {len(other)} of {len(column)} of another "
            f"(rows {other[:3].tolist()}, widths {np.unique(lengths[lengths != width])[:3].tolist()})."
        )
    values = finite(known.flatten(), feature)
    if np.isnan(values).any():
        raise DataError(f"column {feature}: {int(np.isnan(values).sum())} components are null or NaN.")
    matrix = np.zeros((len(column), width))
    matrix[~missing] = values.reshape(len(known), width)
    return matrix, missing
