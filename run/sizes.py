"""The one dial: a size name fixes widths, depths and lengths of every model; the rest is derived."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Everything a size name fixes.

    Attributes:
        name: ``nano`` (tests, the simulated shop), ``small`` (two CPU cores, real data), ``base`` (a GPU).
        item_width: width of the item and query vectors written to the store (Matryoshka prefixes halve it).
        hidden: width of the multimodal backbone.
        layers: depth of its vision and of its language side.
        image_px: side of the square an image is resized to, in pixels.
        text_tokens: tokens kept of an item's text.
        id_width: width of the ranker's id embeddings.
        history: how many of a user's latest behaviours the models see.
    """

    name: str
    item_width: int
    hidden: int
    layers: int
    image_px: int
    text_tokens: int
    id_width: int
    history: int

    @property
    def matryoshka(self) -> tuple[int, ...]:
        """Prefix widths that are trained as vectors of their own, widest first, down to 16."""
        widths = [self.item_width]
        while widths[-1] // 2 >= 16:
            widths.append(widths[-1] // 2)
        return tuple(widths)


SIZES = {
    size.name: size
    for size in (
        Size(
            "nano", item_width=64, hidden=96, layers=2, image_px=32, text_tokens=32, id_width=16, history=50
        ),
        Size(
            "small",
            item_width=128,
            hidden=128,
            layers=2,
            image_px=64,
            text_tokens=48,
            id_width=32,
            history=100,
        ),
        Size(
            "base",
            item_width=256,
            hidden=768,
            layers=12,
            image_px=224,
            text_tokens=128,
            id_width=64,
            history=200,
        ),
    )
}


class SizeError(ValueError):
    """A size nobody knows."""


def size(name: str) -> Size:
    """The size called ``name``.

    Raises:
        SizeError: unknown name, listing the known ones.
    """
    if name not in SIZES:
        raise SizeError(f"unknown size {name!r}: expected one of {', '.join(SIZES)}")
    return SIZES[name]
