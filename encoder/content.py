"""The encoder's input: the picture and the text of an item or a query, either of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from encoder.tokenizer import tokenize

TITLE, CATEGORY, ATTRIBUTE, DESCRIPTION = 0, 1, 2, 3  # fields of an item's text


@dataclass(frozen=True)
class Content:
    """A picture and text, either of which may be missing.

    Attributes:
        image: encoded picture (JPEG, PNG, ...); None when there is none.
        text: a query's text, or an item's title.
        category: an item's category path, as words.
        attributes: an item's attribute values.
        description: an item's description.
    """

    image: bytes | None
    text: str | None = None
    category: str | None = None
    attributes: str | None = None
    description: str | None = None

    @property
    def fields(self) -> list[tuple[int, str]]:
        """(field, text) of every text that is not blank, in the order in which the encoder reads them."""
        parts = (
            (TITLE, self.text),
            (CATEGORY, self.category),
            (ATTRIBUTE, self.attributes),
            (DESCRIPTION, self.description),
        )
        return [(kind, text.strip()) for kind, text in parts if text and text.strip()]

    @property
    def words(self) -> str:
        """All texts joined; empty when there is none."""
        return ". ".join(text for _, text in self.fields)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to encode."""
        return self.image is None and not self.fields


def attribute_pairs(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (name, value) attributes of an item row in stored order, without blank ones."""
    attributes = row["attributes"] or []
    pairs = attributes.items() if isinstance(attributes, Mapping) else attributes
    return [(name, value) for name, value in pairs if name and value]


def item_content(row: Mapping[str, Any], image: bytes | None = None) -> Content:
    """The content of an item: the same function for training, bulk embedding and serving.

    Attribute values come without their names: the names are the same in every item, and would use up the few tokens
    that are kept (``Size.text_tokens``) without distinguishing any two items.

    Args:
        row: a row of ``dataset.contracts.ITEMS`` as Python values.
        image: the encoded picture that ``row["image_id"]`` names, if there is one.
    """
    return Content(
        image=image,
        text=row["title"],
        category=" ".join(row["category"] or []),
        attributes=" ".join(value for _, value in attribute_pairs(row)),
        description=row["description"],
    )


def query_content(row: Mapping[str, Any], image: bytes | None = None) -> Content:
    """The content of a query, a row of ``dataset.contracts.QUERIES``: text, picture, or both."""
    return Content(image=image, text=row["text"])


def tokenize_fields(
    tokenizer: PreTrainedTokenizerBase, contents: Sequence[Content], limit: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each content's text, and the field of each token, both cut to ``limit``."""
    pieces, owner, kind = [], [], []
    for place, content in enumerate(contents):
        for number, (tells, text) in enumerate(content.fields):
            pieces.append(". " + text if number else text)
            owner.append(place)
            kind.append(tells)
    out: list[tuple[list[int], list[int]]] = [([], []) for _ in contents]
    for place, tells, ids in zip(owner, kind, tokenize(tokenizer, pieces, limit), strict=True):
        tokens, kinds = out[place]
        room = ids[: limit - len(tokens)]
        tokens.extend(room)
        kinds.extend([tells] * len(room))
    return out
