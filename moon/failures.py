"""What the command line says of an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from moonstore.disk import DiskError, disk_reason

OURS = (
    "moon", "evaluation", "serving", "retrieval", "ranker", "encoder", "feature_repo", "moonstore", "dataset", "run",
)  # fmt: skip

Work = TypeVar("Work", bound=Callable[..., Any])


def names_own_ids(work: Work) -> Work:
    """The same function of a run, or of its folder, whose errors name items, users and queries by the shop's ids."""

    @wraps(work)
    def named(run: Any, *rest: Any, **options: Any) -> Any:
        try:
            return work(run, *rest, **options)
        except Exception as error:
            from feature_repo.own_ids import in_own_ids

            store = Path(getattr(run, "folder", run)) / "store"
            error.args = tuple(in_own_ids(store, one) if isinstance(one, str) else one for one in error.args)
            raise

    return cast(Work, named)


def told(error: BaseException) -> str | None:
    """The message of one of our errors, or of one of the disk; None: it is neither, and its traceback says more."""
    if type(error).__module__.split(".")[0] in OURS:
        return f"{type(error).__name__}: {error}"
    why = disk_reason(error)
    return (
        None
        if why is None
        else f"DiskError: {DiskError(getattr(error, 'filename', None) or Path.cwd(), why)}"
    )
