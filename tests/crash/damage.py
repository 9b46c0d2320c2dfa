"""What a disk does to a file: cut off, a bit flipped, gone, emptied, or replaced by another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLIPS = 8  # per file, beside its first and its last byte


def damaged(content: bytes, seed: str) -> Iterator[tuple[str, bytes]]:
    """(what was done, the content then), each different from the content."""
    size = len(content)
    for length in sorted({0, 1, size // 3, max(size - 2, 0)}):  # the last byte of a JSON file is a newline
        yield f"cut after {length} of {size} bytes", content[:length]
    draw = random.Random(seed)
    places = {0, size - 1, *(draw.randrange(size) for _ in range(FLIPS))} if size else set()
    for place in sorted(places):
        bit = 1 << draw.randrange(8)
        flipped = bytes([content[place] ^ bit])
        yield f"bit {bit:#x} of byte {place} flipped", content[:place] + flipped + content[place + 1 :]


@contextmanager
def instead(path: Path, content: bytes | None) -> Iterator[None]:
    """The file with other content, or (None) without the file; as it was afterwards."""
    kept = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)  # first: it may be linked from a generation
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if kept is not None:
            path.write_bytes(kept)
