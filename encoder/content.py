"""What the encoder sees of an item or a query: a picture, a text, both, or one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Content:
    """A picture and a text, either of which may be missing.

    Attributes:
        image: encoded picture (JPEG, PNG, ...); None when there is none.
        text: None or blank when there is none.
    """

    image: bytes | None
    text: str | None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to encode."""
        return self.image is None and not (self.text or "").strip()


def attribute_pairs(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (name, value) attributes of an item row in stored order, blanks left out."""
    attributes = row["attributes"] or []
    pairs = attributes.items() if isinstance(attributes, Mapping) else attributes
    return [(name, value) for name, value in pairs if name and value]


def item_text(row: Mapping[str, Any]) -> str | None:
    """Title, category path, attributes and description of an item, in this order, as one text.

    Values are written without their attribute's name: names repeat in every item and would fill the few
    tokens kept (``Size.text_tokens``) with what tells no two items apart.

    Args:
        row: a row of ``dataset.contracts.ITEMS`` as Python values; missing fields are left out.

    Returns:
        None when the item has no words at all.
    """
    values = " ".join(value for _, value in attribute_pairs(row))
    fields = [row["title"], " ".join(row["category"] or []), values, row["description"]]
    text = ". ".join(field.strip() for field in fields if field and field.strip())
    return text or None


def item_content(row: Mapping[str, Any], image: bytes | None = None) -> Content:
    """The content of an item: the same function for training, bulk embedding and serving.

    Args:
        row: a row of ``dataset.contracts.ITEMS`` as Python values.
        image: the encoded picture that ``row["image_id"]`` names, if there is one.
    """
    return Content(image=image, text=item_text(row))


def query_content(row: Mapping[str, Any], image: bytes | None = None) -> Content:
    """The content of a query, a row of ``dataset.contracts.QUERIES``: its words, its picture, or both."""
    return Content(image=image, text=row["text"])
