"""What a test may need beyond the lock, how it is found, and what to install where it is missing.

A test says what it needs with a marker of that name (``@pytest.mark.redis``, ``@pytest.mark.real("hm_fashion")``),
and ``conftest.py`` skips it where that is missing. There is no other way to skip.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from evaluation.bench import local_redis

DATA = Path(os.environ.get("MOON_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


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
    "ray": Need(lambda: find_spec("ray") is not None, "Ray is not installed: 'make setup-ray'"),
    "real": Need(
        lambda pack: (DATA / pack).is_dir(),
        f"there is no data pack {{}} in {DATA}: set MOON_DATA to the folder that holds it",
    ),
}


def missing(name: str, *arguments: str) -> str | None:
    """Why a test with this marker cannot run here; None where it can."""
    need = NEEDS[name]
    return None if need.found(*arguments) else need.missing.format(*arguments)
