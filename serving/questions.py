"""The parameters of HTTP requests as strict models: no ``true``, ``"7"``, ``7.0`` or NaN passes for an integer.

In addresses and forms an id is a text; ``read_id`` says whether it is one of the shop's.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt

from dataset.contracts import DataError
from dataset.json_keys import refuse_repeated_keys
from dataset.pictures import decoded_pixels
from dataset.records import Id, Word
from dataset.shop_ids import MOST_ID, Kinds, ShopId, from_text

MOST_HITS = 200
MOST_SESSION = 100
MOST_CONTEXT = 4000  # characters


class Refused(Exception):
    """A request that is refused with a status, a reason and, if any, headers."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


def _whole_number(value: Any) -> int:
    """Numbers in addresses and forms arrive as text: digits and nothing else."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,19}", value):
        raise ValueError("expected a whole number in decimal digits")
    return int(value)


TextId = Annotated[str, Field(min_length=1, max_length=MOST_ID)]
TextCount = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=MOST_HITS)]


class RecommendQuestion(BaseModel):
    """``GET /recommend``: who asks, how many items of which category, the items of this visit, and a JSON object.

    ``explain`` asks what each feature adds to each score, ``new`` for what the user has not taken before.
    """

    model_config = ConfigDict(extra="forbid")

    user_id: TextId
    k: TextCount = 20
    category: Annotated[Word, Field(min_length=1)] | None = None
    session: Annotated[list[TextId], Field(max_length=MOST_SESSION)] = Field(default_factory=list)
    context: Annotated[str, Field(max_length=MOST_CONTEXT)] | None = None
    explain: bool = False
    new: bool = False


class SimilarQuestion(BaseModel):
    """``GET /similar``: the item to compare with, and how many."""

    model_config = ConfigDict(extra="forbid")

    item_id: TextId
    k: TextCount = 20


class PageQuestion(BaseModel):
    """``GET /``: what the page shows, a search before an item before a user; an empty field is as good as none."""

    model_config = ConfigDict(extra="forbid")

    user_id: str = ""
    category: Word = ""
    item_id: str = ""
    text: Word = ""


class SearchForm(BaseModel):
    """The text fields of a multipart ``POST /search``; the picture travels beside them as ``image``."""

    model_config = ConfigDict(extra="forbid")

    text: Word | None = None
    user_id: TextId | None = None
    k: TextCount = 20


class SearchQuestion(BaseModel):
    """The JSON body of ``POST /search``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Word | None = None
    image_base64: str | None = None
    user_id: Id | None = None
    k: Annotated[StrictInt, Field(ge=1, le=MOST_HITS)] = 20


def read_id(field: str, text: str, kinds: Kinds) -> ShopId:
    """An id of an address or a form.

    Args:
        field: which id, e.g. ``item_id``.
        text: as it was sent.
        kinds: what the shop's ids are.

    Raises:
        Refused: 422, the shop's ids are not written so.
    """
    try:
        return from_text(text, kinds[field])
    except ValueError as error:
        raise Refused(422, f"{field}: {error}") from None


def read_context(text: str | None) -> dict[str, Any] | None:
    """What a client sends with a request: a JSON object.

    Raises:
        Refused: 422, it is none.
        DataError: a key is there twice.
    """
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(422, "context: expected a JSON object")
    refuse_repeated_keys(text)
    return found


def decode_base64(text: str) -> bytes:
    """The picture inside a JSON body.

    Raises:
        Refused: 422, not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, "image_base64 is not base64") from None


def check_image(content: bytes, max_bytes: int, max_pixels: int) -> None:
    """Refuse a picture by its size and its header; whoever decodes it refuses what does not decode.

    Args:
        content: the encoded picture.
        max_bytes: at most so many.
        max_pixels: at most so many are decoded (``dataset.pictures.decoded_pixels``).

    Raises:
        Refused: 413, more than ``max_bytes``; 422, more than ``max_pixels`` or not a picture.
    """
    if len(content) > max_bytes:
        raise Refused(413, f"the picture has {len(content)} bytes: at most {max_bytes} are read")
    try:
        pixels = decoded_pixels(content)
    except DataError as error:
        raise Refused(422, str(error)) from None
    if pixels > max_pixels:
        raise Refused(422, f"the picture decodes to {pixels} pixels: at most {max_pixels} are decoded")
