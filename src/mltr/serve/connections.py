"""Client connections: uvicorn's, with limits on the head of a request, idle time and their number.

uvicorn limits none of these, and an incomplete head is held in memory before any key is checked.
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

MAX_HEAD = 32_768  #: maximum bytes of a request line and headers
MAX_PIPELINE = 16  #: maximum pipelined requests, sent before the first response
KEEP_ALIVE_S = 75  #: lifetime of an idle connection in seconds, longer than that of common proxies
SENDING_S = 30  #: seconds to send a response


def protocol(settings: Settings) -> Any:
    """Return the factory of a server's connections, for uvicorn's option `http`."""
    return partial(Connection, settings=settings, waiting=OrderedDict())


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection with one client.

    If there are too many connections, the one that has been without a request for longest is
    closed.
    """

    def __init__(
        self, *args: Any, settings: Settings, waiting: OrderedDict[Connection, None], **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._settings = settings
        self._waiting = waiting  #: the server's connections without a request, oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = True  #: reading a head, or waiting for one
        self._head_bytes = 0  #: bytes of the current head
        self._heads = 0  #: number of complete heads
        self._is_deaf = False  #: whether further input is ignored
        self._refusal: tuple[int, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, closing the longest idle one if there are too many."""
        super().connection_made(transport)
        self._waiting[self] = None
        self._allow(self._settings.head_timeout_s)
        if len(self.connections) > self._settings.max_connections:
            oldest = next(iter(self._waiting))
            if oldest is self:
                self._refuse(503, "too many connections: retry in a second")
            else:
                oldest.transport.abort()
                del self._waiting[oldest]

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        self._waiting.pop(self, None)
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; refuse a head that is too large or isn't HTTP/1.1."""
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
        except httptools.HttpParserUpgrade:  # no other protocol is supported
            self._is_deaf = True
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            self._refuse(*self._refusal or (400, "not a valid HTTP/1.1 request"))
        else:
            if self._heads == heads and self._is_in_head and self._head_bytes > MAX_HEAD:
                self._refuse(*_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Start a request, or refuse it."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD:
            self._refusal = _TOO_LARGE
        elif len(self.pipeline) >= MAX_PIPELINE:
            self._refusal = 429, "too many requests at once"
        elif self.parser.should_upgrade() and {b"content-length", b"transfer-encoding"} & {
            name for name, _ in self.headers
        }:  # the parser would drop the body
            self._refusal = 400, "only HTTP/1.1 is supported: don't send Upgrade with a body"
        if self._refusal:
            raise ValueError(self._refusal)
        self._is_in_head = False
        self._heads += 1
        self._waiting.pop(self, None)
        self._allow(self._settings.body_timeout_s + self._settings.timeout_s + SENDING_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for the next head."""
        super().on_message_complete()
        self._is_in_head, self._head_bytes = True, 0
        self._rest()

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or become idle."""
        super().on_response_complete()
        self._rest()

    @property
    def _is_answered(self) -> bool:
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def _rest(self) -> None:
        """Mark the connection as idle unless a request is in progress."""
        if self._is_in_head and self._is_answered and not self.transport.is_closing():
            self._waiting[self] = None
            self._allow(KEEP_ALIVE_S)

    def _allow(self, seconds: float) -> None:
        """Restart the timer that closes the connection."""
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self._is_in_head and self._head_bytes and self._is_answered and not self._is_deaf:
            most = self._settings.head_timeout_s
            self._refuse(408, f"the head of the request took longer than {most:g} s")
        else:
            self.transport.abort()

    def _refuse(self, status: int, why: str) -> None:
        """Respond with an error and close soon after; further input is ignored."""
        if self._is_deaf or self.transport.is_closing():
            return
        self._is_deaf = True
        self._waiting.pop(self, None)
        logger.info("%s: %d, %s", (self.client or ("",))[0], status, why)
        if not self._is_answered:
            if self.cycle.response_started or self.pipeline:  # another response would interfere
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps({"detail": why}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._allow(LINGER_S)
        self.transport.write(head.encode() + body)
        try:
            self.transport.write_eof()
        except OSError:  # the client has just left, which the loop hasn't heard yet
            self.transport.abort()


_TOO_LARGE = (431, f"the head of the request is larger than {MAX_HEAD:,} bytes")
