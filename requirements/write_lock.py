"""Print the lock of the environment this runs in: exact versions, no index, no local version labels."""

import sys
from importlib.metadata import distributions

HEADER = """\
# Full pinned environment for Python 3.11. Install torch first, then this file with --no-deps (see the Makefile):
# torchrec declares the CUDA fbgemm, which would overwrite the CPU one.
# Written by 'make lock'.
"""
NOT_PINNED = {"pip", "moon", "uv"}


def main() -> None:
    """Write one ``name==version`` line per installed distribution to stdout."""
    pins = {
        dist.metadata["Name"].lower().replace("_", "-"): dist.version.split("+")[0]
        for dist in distributions()
        if dist.metadata["Name"].lower() not in NOT_PINNED
    }
    sys.stdout.write(HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items())))


if __name__ == "__main__":
    main()
