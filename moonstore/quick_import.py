"""Import Feast without instrumenting it.

Feast decorates its definitions with ``typeguard.typechecked``, which parses and recompiles them at import: 2.2 of the
4 CPU-seconds that importing it takes. The checks find mistakes in definitions, which ``feast apply`` and mypy read;
a process that only reads a store has no use for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typeguard


@contextmanager
def without_type_checks() -> Iterator[None]:
    """Modules that are imported inside the block keep their functions as they are written."""
    checked = typeguard.typechecked
    typeguard.typechecked = _unchanged  # type: ignore[assignment]
    try:
        yield
    finally:
        typeguard.typechecked = checked  # type: ignore[assignment]


def _unchanged(target: Any = None, **_: Any) -> Any:
    """The decorator, with or without options, that decorates nothing."""
    unchanged: Callable[[Any], Any] = lambda one: one  # noqa: E731
    return unchanged if target is None else target
