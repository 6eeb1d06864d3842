"""A loopback HTTP server for a folder, with simulated network faults."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: Fault of request number N (from 0) of a file: "", "500", "404", "break" (after half of the
#: response), "corrupt" (one byte), "no range" (ignores the Range header).
Faults = Callable[[str, int], str]


class FaultyServer(ThreadingHTTPServer):
    """The server; `requests` lists each requested file with its Range header."""

    daemon_threads = True

    def __init__(self, folder: Path, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults = folder, faults
        self.requests: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(folder: Path, faults: Faults = lambda name, number: "") -> Iterator[FaultyServer]:
    server = FaultyServer(folder, faults)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name, server = self.path.lstrip("/"), self.server
        asked = self.headers.get("Range") or ""
        with server.lock:
            number = server.counts[name]
            server.counts[name] += 1
            server.requests.append((name, asked))
        fault = server.faults(name, number)
        path = server.folder / name
        if fault.isdigit() or not path.is_file():
            self.send_error(int(fault or 404))
            return
        content = path.read_bytes()
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if begin and fault != "no range":
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            content = content[begin:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "break":
            content = content[: len(content) // 2]
        if fault == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        self.wfile.write(content)
