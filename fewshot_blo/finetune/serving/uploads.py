"""Pictures in requests: how many and how large they may be."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fewshot_blo.errors import installed_by
from fewshot_blo.finetune.serving.answers import Picture

with installed_by(".[serve]"):
    from python_multipart.exceptions import FormParserError
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import Request

FILES = 100
"""Largest number of pictures in a request."""
FILE_MIB, BODY_MIB = 32, 128
"""Largest size of one picture, and of a request, in MiB."""
_MIB = 2**20
_LONGEST = 200


@dataclass(frozen=True)
class Upload:
    """What a form contains.

    Attributes:
        pictures: its files, those named ``files``.
        fields: its texts by name.
    """

    pictures: list[Picture]
    fields: dict[str, str]


class _TooLarge(MultiPartException):
    """A body that goes on beyond the limit; its class makes the parser close its files."""


async def upload(request: Request) -> Upload:
    """The pictures and texts of a multipart form.

    Raises:
        HTTPException: if it is no such form, has no or too many pictures, or is too large.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(415, "send a form of files, as curl -F files=@PICTURE does")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > BODY_MIB * _MIB:
        raise _too_large()
    parser = MultiPartParser(
        request.headers, _limited(request), max_files=FILES, max_fields=10, max_part_size=10_000
    )
    try:
        form = await parser.parse()
    except _TooLarge as error:
        raise _too_large() from error
    except (MultiPartException, FormParserError) as error:  # Old versions pass on the latter.
        raise HTTPException(
            400, f"the form cannot be read ({error}); send at most {FILES} pictures"
        ) from error
    try:
        texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, "the form has no pictures: send some under the name files")
        return Upload([await _picture(file) for file in files], texts)
    finally:
        await form.close()


async def _picture(file: UploadFile) -> Picture:
    name = re.split(r"[/\\]", file.filename or "")[-1][-_LONGEST:]
    if (file.size or 0) > FILE_MIB * _MIB:
        raise HTTPException(
            413, f"{name} has {(file.size or 0) / _MIB:.0f} MiB: send at most {FILE_MIB} MiB"
        )
    return Picture(name or "picture", await file.read())


async def _limited(request: Request) -> AsyncGenerator[bytes, None]:
    """The body up to the limit, whatever its header says about its length."""
    received = 0
    async for part in request.stream():
        received += len(part)
        if received > BODY_MIB * _MIB:
            raise _TooLarge("too large")
        yield part


def _too_large() -> HTTPException:
    return HTTPException(
        413, f"the pictures have more than {BODY_MIB} MiB together: send fewer at a time"
    )
