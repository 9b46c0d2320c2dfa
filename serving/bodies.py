"""Request bodies: read within a deadline, and a search from JSON or a form."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from serving.questions import Refused, SearchForm, SearchQuestion, decode_base64
from serving.refusals import reasons
from serving.settings import Settings
from serving.work import Work


async def read_body(request: Request, settings: Settings) -> bytes:
    """The whole body.

    Raises:
        Refused: 408, it does not arrive in time.
    """
    try:
        return await asyncio.wait_for(request.body(), settings.body_deadline_s)
    except TimeoutError:
        raise _too_slow(settings) from None


async def read_search(
    request: Request, settings: Settings, parsing: Work
) -> tuple[str | None, bytes | None, int | None, int]:
    """Text, picture, user and k of a search, from JSON, which ``parsing`` parses, or a form.

    Raises:
        Refused: 408, too slow; 415, another content type; 422, not a search.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return await parsing.run(_parse_search, await read_body(request, settings))
        if kind == "multipart/form-data":
            form = await asyncio.wait_for(request.form(max_files=1, max_fields=8), settings.body_deadline_s)
            fields: dict[str, Any] = {name: value for name, value in form.items() if name != "image"}
            upload = form.get("image")
            if upload is not None and not isinstance(upload, UploadFile):
                raise Refused(422, "image: expected a file")
            filled = SearchForm.model_validate({name: value for name, value in fields.items() if value != ""})
            image = await upload.read() if upload is not None else None
            return filled.text, image or None, filled.user_id, filled.k
    except TimeoutError:
        raise _too_slow(settings) from None
    except ValidationError as error:
        raise Refused(422, reasons(error.errors(include_input=False))) from None
    raise Refused(
        415, f"expected application/json or multipart/form-data, found {kind or 'no content type'!r}"
    )


def _parse_search(body: bytes) -> tuple[str | None, bytes | None, int | None, int]:
    asked = SearchQuestion.model_validate_json(body)
    image = None if asked.image_base64 is None else decode_base64(asked.image_base64)
    return asked.text, image, asked.user_id, asked.k


def _too_slow(settings: Settings) -> Refused:
    return Refused(408, f"the body did not arrive within {settings.body_deadline_s} s")
