"""Request bodies: read within a deadline, JSON where JSON is expected, a search from JSON or a form."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from dataset.json_keys import refuse_repeated_keys
from dataset.shop_ids import Kinds, ShopId
from serving.questions import Refused, SearchForm, SearchQuestion, decode_base64, read_id
from serving.refusals import reasons
from serving.settings import Settings
from serving.work import Work

JSON, FORM = "application/json", "multipart/form-data"


async def read_json(request: Request, settings: Settings) -> bytes:
    """The whole body of a request that says it is JSON: a page of another site cannot say so unasked.

    Raises:
        Refused: 408, it does not arrive in time; 415, it is something else.
    """
    if (kind := _kind(request)) != JSON:
        raise Refused(415, f"expected {JSON}, found {kind or 'no content type'!r}")
    return await _read_body(request, settings)


async def read_search(
    request: Request, settings: Settings, parsing: Work, kinds: Kinds
) -> tuple[str | None, bytes | None, ShopId | None, int]:
    """Text, picture, user and k of a search, from JSON, which ``parsing`` parses, or a form.

    ``kinds`` says what the shop's ids are.

    Raises:
        Refused: 408, too slow; 415, another content type; 422, not a search.
        DataError: a key is there twice.
    """
    kind = _kind(request)
    try:
        if kind == JSON:
            return await parsing.run(_parse_search, await _read_body(request, settings), kinds)
        if kind == FORM:
            form = await asyncio.wait_for(request.form(max_files=1, max_fields=8), settings.body_deadline_s)
            refuse_repeated(name for name, _ in form.multi_items())
            fields: dict[str, Any] = {name: value for name, value in form.items() if name != "image"}
            upload = form.get("image")
            if upload is not None and not isinstance(upload, UploadFile):
                raise Refused(422, "image: expected a file")
            filled = SearchForm.model_validate({name: value for name, value in fields.items() if value != ""})
            image = await upload.read() if upload is not None else None
            user = None if filled.user_id is None else read_id("user_id", filled.user_id, kinds)
            return filled.text, image or None, user, filled.k
    except TimeoutError:
        raise _too_slow(settings) from None
    except ValidationError as error:
        raise Refused(422, reasons(error.errors(include_input=False))) from None
    raise Refused(415, f"expected {JSON} or {FORM}, found {kind or 'no content type'!r}")


def refuse_repeated(names: Iterable[str], lists: Iterable[str] = ()) -> None:
    """Refuse a parameter that is given twice: only the last value would count.

    Args:
        names: as they were given.
        lists: those that may be repeated.

    Raises:
        Refused: 422.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen and name not in lists:
            raise Refused(422, f"{name[:40]}: expected once, found more than once")
        seen.add(name)


async def _read_body(request: Request, settings: Settings) -> bytes:
    try:
        return await asyncio.wait_for(request.body(), settings.body_deadline_s)
    except TimeoutError:
        raise _too_slow(settings) from None


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _parse_search(body: bytes, kinds: Kinds) -> tuple[str | None, bytes | None, ShopId | None, int]:
    asked = SearchQuestion.model_validate_json(body, context=kinds)
    refuse_repeated_keys(body)
    image = None if asked.image_base64 is None else decode_base64(asked.image_base64)
    return asked.text, image, asked.user_id, asked.k


def _too_slow(settings: Settings) -> Refused:
    return Refused(408, f"the body did not arrive within {settings.body_deadline_s} s")
