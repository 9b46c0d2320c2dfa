"""Model sizes: a name sets widths, depths, lengths and batches of every model; the rest is derived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """Everything that a size name sets.

    Attributes:
        name: ``nano`` (tests, the simulated shop), ``small`` (two CPU cores, real data), ``base`` (a GPU).
        item_width: width of the item and query vectors in the store (Matryoshka prefixes halve it).
        hidden: width of the multimodal backbone.
        layers: depth of its vision and of its language part.
        image_px: side of the square that pictures are resized to, in pixels.
        text_tokens: most tokens of an item's text.
        id_width: width of the ranker's id embeddings.
        history: most recent behaviours of a user that the models read.
        encoder_batch: pairs per training step of the encoder.
        encoder_steps: most training steps of the encoder, a limit on time for the machine of this size.
        encoder_chunk: most samples per forward pass whose graph is kept (GradCache); None: the whole batch.
        ranker_slots: padded candidates per training step of the ranker.
        ranker_history: those that the ranker reads, where it was told another number; None: ``history``.
    """

    name: str
    item_width: int
    hidden: int
    layers: int
    image_px: int
    text_tokens: int
    id_width: int
    history: int
    encoder_batch: int
    encoder_steps: int
    encoder_chunk: int | None
    ranker_slots: int
    ranker_history: int | None = None

    @property
    def behaviours(self) -> int:
        """Most recent behaviours of a user that the ranker reads."""
        return self.history if self.ranker_history is None else self.ranker_history

    @property
    def is_of_real_data(self) -> bool:
        """Whether real data has this size unless told otherwise."""
        return self.name == REAL

    @property
    def matryoshka(self) -> tuple[int, ...]:
        """Prefix widths trained as embeddings of their own, widest first, down to 16."""
        widths = [self.item_width]
        while widths[-1] // 2 >= 16:
            widths.append(widths[-1] // 2)
        return tuple(widths)


SIZES = {
    size.name: size
    for size in (
        Size(
            "nano",
            item_width=64,
            hidden=96,
            layers=2,
            image_px=32,
            text_tokens=32,
            id_width=16,
            history=50,
            encoder_batch=96,
            encoder_steps=500,
            encoder_chunk=None,
            ranker_slots=512,
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
            encoder_batch=128,
            encoder_steps=600,
            encoder_chunk=None,
            ranker_slots=1024,
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
            encoder_batch=256,
            encoder_steps=20_000,
            encoder_chunk=64,
            ranker_slots=2048,
        ),
    )
}
# Default sizes: of the simulated shop, of real data, of the GPU benchmark.
SIMULATED, REAL, GPU = "nano", "small", "base"


class SizeError(ValueError):
    """An unknown size name."""


def size(name: str) -> Size:
    """The size called ``name``.

    Raises:
        SizeError: unknown name; lists the known ones.
    """
    if name not in SIZES:
        raise SizeError(f"unknown size {name!r}: expected one of {', '.join(SIZES)}")
    return SIZES[name]


def recorded(content: Mapping[str, Any]) -> Size:
    """The size recorded in an artifact's configuration.

    Fields that an earlier release did not record are taken from the size of the same name.

    Raises:
        SizeError: its name is unknown.
    """
    return Size(**{**asdict(size(content["name"])), **content})
