"""Print the lock of the environment this runs in: exact versions, no index, no local version labels, no extras."""

import sys
from importlib.metadata import distributions
from pathlib import Path

HEADER = """\
# Full pinned environment for Python 3.11. Install torch first, then this file with --no-deps (see the Makefile):
# torchrec declares the CUDA fbgemm, which would overwrite the CPU one.
# Written by 'make lock'.
"""
NOT_PINNED = {"pip", "moon", "uv"}
EXTRAS = [
    Path(__file__).with_name(name) for name in ("ray.lock", "pretrained.lock", "tune.lock")
]  # have locks of their own


def main() -> None:
    """Write one ``name==version`` line per installed distribution to stdout."""
    pinned = [line for extra in EXTRAS for line in extra.read_text().splitlines() if "==" in line]
    elsewhere = {line.split("==")[0] for line in pinned}
    pins = {
        dist.metadata["Name"].lower().replace("_", "-"): dist.version.split("+")[0]
        for dist in distributions()
        if dist.metadata["Name"].lower() not in NOT_PINNED
    }
    lines = (f"{name}=={version}\n" for name, version in sorted(pins.items()) if name not in elsewhere)
    sys.stdout.write(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
