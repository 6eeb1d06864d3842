"""Connections of clients: uvicorn's, with bounds on heads, on silence and on how many there are.

uvicorn bounds none of these, and whatever comes before a head is whole is held without a key.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mltr.serve.settings import Settings
from mltr.serve.uploads import LINGER_S

logger = logging.getLogger(__name__)

MAX_HEAD = 32_768  #: bytes of a request's line and headers
MAX_PIPELINE = 16  #: requests that a client sends before it has the answer to the first
KEEP_ALIVE_S = 75  #: of an idle connection; a proxy in front must be the first to give it up
SENDING_S = 30  #: for an answer, once it is there


def protocol(settings: Settings) -> Any:
    """Return what uvicorn takes as `http`: it makes the connections of one server."""
    return partial(Connection, settings=settings, waiting=OrderedDict())


class Connection(HttpToolsProtocol):
    """HTTP/1.1 with one client, from its first byte on.

    Where there are too many connections, the one that has waited longest for a head makes room.
    """

    def __init__(
        self, *args: Any, settings: Settings, waiting: OrderedDict[Connection, None], **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._settings = settings
        self._waiting = waiting  #: of all connections those without a request, oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = True  #: or before it
        self._head_bytes = 0  #: that came while it was
        self._heads = 0  #: that were whole
        self._is_deaf = False  #: nothing that comes is read any more
        self._refusal: tuple[int, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take up the connection, if need be in the place of another one."""
        super().connection_made(transport)
        self._waiting[self] = None
        self._allow(self._settings.head_timeout_s)
        if len(self.connections) > self._settings.max_connections:
            oldest = next(iter(self._waiting))
            if oldest is self:
                self._refuse(503, "too many connections: come again in a second")
            else:
                oldest.transport.abort()
                del self._waiting[oldest]

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._waiting.pop(self, None)
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless that was too much."""
        self._unset_keepalive_if_required()
        if self._is_deaf:
            return
        heads = self._heads
        if self._is_in_head:
            if not self._head_bytes and self._is_answered:
                self._allow(self._settings.head_timeout_s)
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # there is nothing else to speak
            self._is_deaf = True
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            self._refuse(*self._refusal or (400, "this is no HTTP/1.1"))
        else:
            if self._heads == heads and self._is_in_head and self._head_bytes > MAX_HEAD:
                self._refuse(*_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Start with a request."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD:
            self._refusal = _TOO_LARGE
        elif len(self.pipeline) >= MAX_PIPELINE:
            self._refusal = 429, "too many requests at once"
        elif self.parser.should_upgrade() and {b"content-length", b"transfer-encoding"} & {
            name for name, _ in self.headers
        }:  # the parser would drop the body
            self._refusal = 400, "this server speaks HTTP/1.1 alone: send no Upgrade with a body"
        if self._refusal:
            raise ValueError(self._refusal)
        self._is_in_head = False
        self._heads += 1
        self._waiting.pop(self, None)
        self._allow(self._settings.body_timeout_s + self._settings.timeout_s + SENDING_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Await the next head."""
        super().on_message_complete()
        self._is_in_head, self._head_bytes = True, 0
        self._rest()

    def on_response_complete(self) -> None:
        """Begin with a request that waited, or be idle."""
        super().on_response_complete()
        self._rest()

    @property
    def _is_answered(self) -> bool:
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def _rest(self) -> None:
        """Be idle, unless there is something to do."""
        if self._is_in_head and self._is_answered and not self.transport.is_closing():
            self._waiting[self] = None
            self._allow(KEEP_ALIVE_S)

    def _allow(self, seconds: float) -> None:
        """Give what is awaited now so much time."""
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self._is_in_head and self._head_bytes and self._is_answered and not self._is_deaf:
            most = self._settings.head_timeout_s
            self._refuse(408, f"the head of the request took longer than {most:g} s to come")
        else:
            self.transport.abort()

    def _refuse(self, status: int, why: str) -> None:
        """Answer in the application's place, and close in a moment; reading stops at once."""
        if self._is_deaf or self.transport.is_closing():
            return
        self._is_deaf = True
        self._waiting.pop(self, None)
        logger.info("%s: %d, %s", (self.client or ("",))[0], status, why)
        if not self._is_answered:
            if self.cycle.response_started or self.pipeline:  # no place for another answer
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps({"detail": why}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._allow(LINGER_S)


_TOO_LARGE = (431, f"the head of the request is larger than {MAX_HEAD:,} bytes")
