"""Reads the images of a request, with limits on size, number and time while receiving."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, NamedTuple

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mltr.serve.batching import Busy
from mltr.serve.settings import MEGABYTE, Settings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

IMAGE_TYPES = (
    "image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff",
    "image/avif", "image/heic", "image/heif", "application/octet-stream",
)  # fmt: skip
MAX_NAME = 255  #: maximum characters of a file name in a response
MAX_BOUNDARY = 70  #: maximum characters of a multipart boundary (RFC 2046)
MAX_COMMAS = 1000  #: maximum commas in the JSON per image; names may contain some
LINGER_S = 2  #: seconds for which a refused body is read and discarded before the response
HOW = (
    "send images as multipart/form-data (curl -F images=@photo.jpg), as JSON with base64, or one "
    "with a type of its own (curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg')"
)


class Linger:
    """Discards the rest of a body before an early response; closing at once would lose it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; delay a response that comes before the end of the body."""
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        is_whole = "content-length" not in headers and "transfer-encoding" not in headers

        async def watch() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = not message.get("more_body")
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and not is_whole:
                if "expect" not in headers:  # with Expect, the client hasn't sent its body
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LINGER_S):
                            while not is_whole:
                                await watch()
                if not is_whole:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, watch, answer)


class Upload(NamedTuple):
    """One file of a request, undecoded."""

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
    name: Annotated[str, Field(description="returned with the result")] = ""


class JsonImages(BaseModel):
    """A JSON request."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[JsonImage], Field(min_length=1), FailFast()]


class Intake:
    """Reads requests within the limits, and counts the bytes held in memory."""

    def __init__(self, settings: Settings) -> None:
        self.held_bytes = 0
        self._settings = settings
        self._max_body = int(settings.max_body_mb * MEGABYTE)
        self._max_held = int(settings.max_held_mb * MEGABYTE)

    @asynccontextmanager
    async def uploads(self, request: Request) -> AsyncIterator[list[Upload]]:
        """Read the images of a request; their bytes count as held within the context.

        Raises `HTTPException` with 400, 408, 413, 415 or 422, and `Busy` if too much is held.
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
                raise HTTPException(408, f"the request took longer than {most}") from error
            yield found
        finally:
            self.held_bytes -= taken

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self._settings.max_body_mb:g} MB")

    async def _read(self, request: Request, chunks: AsyncGenerator[bytes, None]) -> list[Upload]:
        name, options = parse_options_header(request.headers.get("content-type"))
        kind = name.decode("latin-1").strip()
        # Parse in a thread, as a hostile body may take long.
        if kind == "multipart/form-data":
            boundary = _check_form(options)
            found = await asyncio.to_thread(self._read_form, await _whole(chunks), boundary)
        elif kind == "application/json":
            found = await asyncio.to_thread(self._read_json, await _whole(chunks))
        elif kind in IMAGE_TYPES:
            found = [Upload("", await _whole(chunks))]
        else:
            raise HTTPException(415, f"type {kind[:MAX_NAME]!r} is not supported: {HOW}")
        if not any(upload.data for upload in found):
            raise HTTPException(422, f"the request contains no image: {HOW}")
        return found

    def _read_form(self, body: bytes, boundary: bytes) -> list[Upload]:
        form = _Form(self._settings.max_files)
        try:
            parser = MultipartParser(boundary, form.callbacks())
            parser.write(body)
            if not form.is_whole:
                raise FormParserError("its end is missing")
        except FormParserError as error:
            raise HTTPException(400, f"not valid multipart form data: {error}") from error
        return form.uploads

    def _read_json(self, body: bytes) -> list[Upload]:
        if body.count(b",") > MAX_COMMAS * self._settings.max_files:  # bounds the number of values
            raise HTTPException(413, "the JSON contains too many values")
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


def _check_form(options: dict[bytes, bytes]) -> bytes:
    """Return the boundary of form data; raises `HTTPException` if it can't be read."""
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8"):
        raise HTTPException(415, f"form data must be in UTF-8, not {charset[:MAX_NAME]!r}")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        raise HTTPException(400, f"form data needs a boundary of 1 to {MAX_BOUNDARY} characters")
    return boundary


class _Form:
    """Collects the files of multipart form data (RFC 7578) from the parser's callbacks."""

    def __init__(self, max_files: int) -> None:
        self.uploads: list[Upload] = []
        self.is_whole = False  #: whether the boundary that closes it was there
        self._max_files = max_files
        self._name = self._value = self._disposition = b""
        self._data: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
            "on_end": self._close,
        }

    def _begin(self) -> None:
        if len(self.uploads) == self._max_files:
            raise HTTPException(413, f"Too many files: more than {self._max_files} (form data)")
        self._disposition, self._data = b"", []

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _close(self) -> None:
        self.is_whole = True

    def _end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is None:
            field = options.get(b"name", b"")[:MAX_NAME].decode(errors="replace")
            raise HTTPException(
                422,
                f"part {field!r} contains text, not a file (curl needs @ before the file name); "
                "options belong in the URL",
            )
        data = b"".join(self._data)
        self.uploads.append(Upload(_file_name(name.decode(errors="replace")), data))


async def _whole(chunks: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def _file_name(name: str) -> str:
    """Return the last component of a name that may be a path, made printable."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:MAX_NAME]
