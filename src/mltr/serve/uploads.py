"""Taking images in: bodies are counted, timed and bounded while they come, before any decoding."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, NamedTuple

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from mltr.serve.batching import Busy
from mltr.serve.settings import MEGABYTE, Settings

IMAGE_TYPES = (
    "image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff",
    "application/octet-stream",
)  # fmt: skip
MAX_NAME = 255  #: characters of a file's name that come back
CLOSE = {"Connection": "close"}  #: after an answer, where the rest of the body may still come
LINGER_S = 2  #: for which a body that is too large is thrown away, so that its sender hears why
HOW = (
    "send images as multipart/form-data (curl -F images=@photo.jpg), as JSON with base64, or one "
    "with a type of its own (curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg')"
)


class Upload(NamedTuple):
    """One file of a request, as it came."""

    name: str
    data: bytes


class JsonImage(BaseModel):
    """One image of a JSON request."""

    model_config = ConfigDict(extra="forbid")

    data: Annotated[
        str,
        Field(
            description="the image file in base64", json_schema_extra={"contentEncoding": "base64"}
        ),
    ]
    name: Annotated[str, Field(description="comes back with the result")] = ""


class JsonImages(BaseModel):
    """A JSON request."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[JsonImage], Field(min_length=1)]


class Intake:
    """Reads requests within the limits, and knows how much of them is held at a time."""

    def __init__(self, settings: Settings) -> None:
        self.held_bytes = 0
        self._settings = settings
        self._max_body = int(settings.max_body_mb * MEGABYTE)
        self._max_held = int(settings.max_held_mb * MEGABYTE)

    @asynccontextmanager
    async def uploads(self, request: Request) -> AsyncIterator[list[Upload]]:
        """Read the images of a request, to be held within the context.

        Raises `HTTPException` with 400, 408, 413, 415 or 422, and `Busy` where too much is held.
        """
        taken, is_whole = 0, False

        async def chunks() -> AsyncGenerator[bytes, None]:
            nonlocal taken, is_whole
            while not is_whole:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = message.get("body", b"")
                is_whole = not message.get("more_body", False)
                taken += len(chunk)
                self.held_bytes += len(chunk)
                if taken > self._max_body:
                    raise self._too_large()
                if self.held_bytes > self._max_held:
                    raise Busy(1)
                yield chunk

        try:
            try:
                if int(request.headers.get("content-length", 0)) > self._max_body:
                    raise self._too_large()
                async with asyncio.timeout(self._settings.body_timeout_s):
                    found = await self._read(request, chunks())
            except TimeoutError as error:
                most = f"{self._settings.body_timeout_s:g} s"
                raise HTTPException(
                    408, f"the request took longer than {most} to come", CLOSE
                ) from error
            except HTTPException as error:
                if not is_whole:
                    await _linger(request)
                    error.headers = CLOSE
                raise
            yield found
        finally:
            self.held_bytes -= taken

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self._settings.max_body_mb:g} MB")

    async def _read(self, request: Request, chunks: AsyncGenerator[bytes, None]) -> list[Upload]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            found = await self._read_form(request, chunks)
        elif kind == "application/json":
            found = await asyncio.to_thread(self._read_json, await _whole(chunks))
        elif kind in IMAGE_TYPES:
            found = [Upload("", await _whole(chunks))]
        else:
            raise HTTPException(415, f"type {kind[:MAX_NAME]!r} is not understood: {HOW}")
        if not any(upload.data for upload in found):
            raise HTTPException(422, f"there is no image in the request: {HOW}")
        return found

    async def _read_form(
        self, request: Request, chunks: AsyncGenerator[bytes, None]
    ) -> list[Upload]:
        most = self._settings.max_files
        parser = MultiPartParser(request.headers, chunks, max_files=most, max_fields=most)
        parser.spool_max_size = self._max_body  # nothing goes to the disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            status = 413 if error.message.startswith("Too many") else 400
            raise HTTPException(status, f"{error.message} (form data)") from error
        found = []
        for field, part in form.multi_items():
            if not isinstance(part, UploadFile):
                raise HTTPException(
                    422,
                    f"part {field[:MAX_NAME]!r} holds text, not a file (with curl: an @ before "
                    "the file's name); options belong into the address",
                )
            found.append(Upload(_file_name(part.filename or ""), await part.read()))
            await part.close()
        return found

    def _read_json(self, body: bytes) -> list[Upload]:
        try:
            images = JsonImages.model_validate_json(body).images
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "body"
            status = 400 if first["type"] == "json_invalid" else 422
            raise HTTPException(status, f"{where}: {first['msg']}") from error
        if len(images) > self._settings.max_files:
            raise HTTPException(413, f"{len(images)} images, more than {self._settings.max_files}")
        found = []
        for number, image in enumerate(images):
            try:
                data = base64.b64decode(image.data, validate=True)
            except ValueError as error:
                raise HTTPException(422, f"images.{number}.data: not base64 ({error})") from error
            found.append(Upload(_file_name(image.name), data))
        return found


async def _whole(chunks: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _linger(request: Request) -> None:
    """Throw away what still comes, for a moment: closing at once would drop the answer too."""
    if "expect" in request.headers:  # the sender waits for our word before it sends the body
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await request.receive()).get("more_body"):
                pass


def _file_name(name: str) -> str:
    """Return the last part of a name that may be a path, fit for an answer."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:MAX_NAME]
