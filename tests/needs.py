"""What a test may need beyond the lock, how it is found, and what to install where it is missing.

A test says what it needs with a marker of that name (``@pytest.mark.redis``, ``@pytest.mark.real("hm_fashion")``),
and ``conftest.py`` skips it where that is missing. There is no other way to skip.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from evaluation.bench import local_redis
from tests.crash import watched

DATA = Path(os.environ.get("MOON_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def _may_mount() -> bool:
    """Whether a small file system can be mounted, and taken away again."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        if (
            shutil.which("mount") is None
            or subprocess.run(mount, capture_output=True, check=False).returncode
        ):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


@dataclass(frozen=True)
class Need:
    """``found`` is asked with the arguments of the marker; ``missing`` is formatted with them."""

    found: Callable[..., bool]
    missing: str


NEEDS = {
    "redis": Need(local_redis.installed, local_redis.NOT_INSTALLED),
    "openssl": Need(
        lambda: shutil.which("openssl") is not None, "openssl is not installed: 'apt-get install openssl'"
    ),
    "watched": Need(
        watched.possible, "a process cannot be watched here: Linux on x86-64 with seccomp is needed"
    ),
    "tmpfs": Need(_may_mount, "a file system cannot be mounted here: that takes root"),
    "ray": Need(lambda: find_spec("ray") is not None, "Ray is not installed: 'make setup-ray'"),
    "optuna": Need(lambda: find_spec("optuna") is not None, "Optuna is not installed: 'make setup-tune'"),
    "peer": Need(
        lambda module: find_spec(module) is not None, "{} is not installed: 'moon bench ranker' says how"
    ),
    "real": Need(
        lambda pack: (DATA / pack).is_dir(),
        f"there is no data pack {{}} in {DATA}: set MOON_DATA to the folder that holds it",
    ),
}


def missing(name: str, *arguments: str) -> str | None:
    """Why a test with this marker cannot run here; None where it can."""
    need = NEEDS[name]
    return None if need.found(*arguments) else need.missing.format(*arguments)
