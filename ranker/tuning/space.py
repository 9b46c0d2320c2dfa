"""The search space: which values a study may try for each setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class Trial(Protocol):
    """What chooses values (``optuna.Trial``)."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...  # noqa: D102

    def suggest_categorical(self, name: str, choices: tuple[int, ...]) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class Between:
    """A number from ``low`` to ``high``; ``log``: of every order of magnitude alike."""

    low: float
    high: float
    log: bool = False

    def ask(self, trial: Trial, name: str) -> float:
        """The value that a trial tries."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def nearest(self, value: float) -> float:
        """The value of the space that is nearest to this one."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class OneOf:
    """One of some whole numbers."""

    values: tuple[int, ...]

    def ask(self, trial: Trial, name: str) -> int:
        """The value that a trial tries."""
        return int(trial.suggest_categorical(name, self.values))

    def nearest(self, value: float) -> int:
        """The value of the space that is nearest to this one."""
        return min(self.values, key=lambda one: abs(one - value))


Space = Mapping[str, Between | OneOf]  # setting -> its values


def ranker_space(id_width: int) -> dict[str, Between | OneOf]:
    """Of every setting of a ranker, around what is shipped for id embeddings of this width.

    The least rate of the tables leaves them as they began: a training moves them by less than their first values.
    """
    return {
        "id_width": OneOf((id_width // 2, id_width, 2 * id_width)),
        "learning_rate": Between(3e-4, 1e-2, log=True),
        "table_learning_rate": Between(1e-6, 2e-2, log=True),
        "hidden": OneOf((4, 8, 16)),
        "depth": OneOf((1, 2, 3)),
        "dropout": Between(0.0, 0.5),
        "weight_decay": Between(1e-3, 1.0, log=True),
        "id_dropout": Between(0.0, 0.5),
        "other_loss": Between(0.0, 0.5),
    }


def to_json(space: Space) -> dict[str, dict[str, Any]]:
    """JSON values that tell two spaces apart."""
    return {
        name: {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(one).items()}
        for name, one in space.items()
    }
