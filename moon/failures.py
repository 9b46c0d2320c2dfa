"""What the command line says of an error."""

from __future__ import annotations

from pathlib import Path

from moonstore.disk import DiskError, disk_reason

OURS = (
    "moon", "evaluation", "serving", "retrieval", "ranker", "encoder", "feature_repo", "moonstore", "dataset", "run",
)  # fmt: skip


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
