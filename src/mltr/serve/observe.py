"""Observability: an ID and a log line for each request, and Prometheus counters."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from typing import Any

from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mltr.terminal import printable, printable_lines

logger = logging.getLogger(__name__)

VALID_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
CLIENT_LEFT = 499  #: status logged when the client has disconnected, as in nginx
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  #: histogram buckets
# The page and the API load nothing from other sites and can't be framed.
SAFE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Metrics:
    """Prometheus counters of one application, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "mltr_requests", "Requests answered", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "mltr_request_seconds",
            "Time from a request to its response",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "mltr_images", "Images by outcome", ["outcome"], registry=self.registry
        )
        self.batch_size = Histogram(
            "mltr_batch_size",
            "Images per batch of the network",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.network_seconds = Counter(
            "mltr_network_seconds", "Time spent in the network", registry=self.registry
        )
        self.pending = Gauge(
            "mltr_pending_images", "Images accepted and not answered yet", registry=self.registry
        )
        self.held = Gauge(
            "mltr_held_bytes", "Size of the requests in memory", registry=self.registry
        )

    def count_batch(self, size: int, seconds: float) -> None:
        """Count a batch of `size` images that took `seconds` in the network."""
        self.batch_size.observe(size)
        self.network_seconds.inc(seconds)


class Observer:
    """The outermost middleware: IDs, log lines, counters, headers, unhandled errors."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, then log and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        asked_id = Headers(scope=scope).get("x-request-id", "")
        request_id = asked_id if VALID_ID.fullmatch(asked_id) else uuid.uuid4().hex
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        failure: Exception | None = None
        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception as error:
            failure = error
            if not status:
                answer = JSONResponse({"detail": "the server failed; see its log"}, 500)
                await answer(scope, receive, send_with_headers)
        self._tell(scope, request_id, status, time.perf_counter() - started, failure)

    def _tell(
        self, scope: Scope, request_id: str, status: int, seconds: float, failure: Exception | None
    ) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        fields = {
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(1000 * seconds, 1),
            "client": (scope.get("client") or ("",))[0],
        } | scope.get("mltr", {})
        level = logging.ERROR if failure else logging.INFO
        logger.log(level, "request", extra={"fields": fields}, exc_info=failure)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        content: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        content |= getattr(record, "fields", {})
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content)  # ASCII with escapes, safe for a terminal


class ShortFormatter(logging.Formatter):
    """Formats a record as one short line for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = getattr(record, "fields", None)
        text = record.getMessage()
        if fields:
            text = "{method} {path} {status} in {ms} ms".format(**fields)
        text = printable(text)
        if record.exc_info:
            text += "\n" + printable_lines(self.formatException(record.exc_info))
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))}  {text}"
