"""A minimal Hugging Face Hub on loopback, sufficient for pushing and fetching small files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory; `requests` lists all requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.refuse_uploads = False
        self.private: dict[str, bool] = {}  #: whether a repository is, as it was created
        self.gated: set[str] = set()  #: repositories with restricted access
        self.dropped: set[str] = set()  #: repositories at which the connection breaks off

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.server.refuse_uploads:
            return self._json({"error": "not your repository"}, status=403)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            name = f"{owner}/{asked['name']}"
            if name in self.server.dropped:
                self.close_connection = True
                return None
            self.server.repositories.setdefault(name, {})
            is_private = asked.get("private") or asked.get("visibility") == "private"
            self.server.private.setdefault(name, bool(is_private))
            return self._json({"url": f"{self.server.endpoint}/{name}"})
        if match := re.match(r"/api/models/(.+/.+)/preupload/", self.path):
            files = [file["path"] for file in json.loads(body)["files"]]
            return self._json(
                {
                    "files": [
                        {"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            )
        if match := re.match(r"/api/datasets/(.+/.+)/paths-info/", self.path):
            asked = parse_qs(body.decode()).get("paths", [])
            files = self.server.repositories[match[1]]
            return self._json([
                {"type": "file", "path": file, "size": len(files[file]), "oid": "0" * 40}
                for file in asked if file in files
            ])  # fmt: skip
        if match := re.match(r"/api/models/(.+/.+)/commit/", self.path):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[match[1]][entry["value"]["path"]] = content
            oid = self._sha(match[1])
            url = f"{self.server.endpoint}/{match[1]}/commit/{oid}"
            return self._json({"commitOid": oid, "commitUrl": url})
        return self._json({"error": "unknown"}, status=404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", self.path):
            if match[1] not in self.server.private:
                return self._json({"error": "none"}, status=404, error="RepoNotFound")
            return self._json({"id": match[1], "private": self.server.private[match[1]]})
        if match := re.match(r"/api/datasets/([^/]+/[^/?]+)(/tree/[^/]+/?)?", self.path):
            return self._describe(match[1], match[2])
        if match := re.match(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
            if match[1] in self.server.dropped:
                self.close_connection = True
                return None
            if match[1] in self.server.gated:
                return self._json({"error": "ask first"}, status=403, error="GatedRepo")
            if match[1] not in self.server.repositories:
                return self._json({"error": "none"}, status=404, error="RepoNotFound")
            content = self.server.repositories[match[1]].get(match[2])
            if content is not None:
                return self._send(content, {
                    "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                    "X-Repo-Commit": self._sha(match[1]),
                })  # fmt: skip
        return self._json({"error": "not found"}, status=404, error="EntryNotFound")

    def _describe(self, name: str, tree: str | None) -> None:
        """Send the description of a data set, or with `tree` the files of a folder or of all."""
        files = self.server.repositories.get(name)
        if files is None:
            return self._json({"error": "no such data set"}, 404, error="RepoNotFound")
        if tree is None:
            listed = [{"rfilename": file} for file in files]
            return self._json({"id": name, "sha": self._sha(name), "siblings": listed})
        folder = self.path.partition("/tree/")[2].partition("?")[0].partition("/")[2]
        entries: list[dict[str, Any]] = []
        for file, content in files.items():
            if not file.startswith(folder):
                continue
            below = file.removeprefix(folder).strip("/")
            top, _, rest = below.partition("/")
            oid = hashlib.sha1(content).hexdigest()
            if rest:
                entries.append(
                    {"type": "directory", "path": f"{folder}/{top}".strip("/"), "oid": oid}
                )
            if not rest or "recursive=True" in self.path or "recursive=true" in self.path:
                entries.append({"type": "file", "path": file, "size": len(content), "oid": oid})
        if not entries:
            return self._json({"error": "no such folder"}, 404, error="EntryNotFound")
        return self._json(entries)

    def _sha(self, name: str) -> str:
        digest = hashlib.sha1()
        for file, content in sorted(self.server.repositories[name].items()):
            digest.update(file.encode() + content)
        return digest.hexdigest()

    def _json(self, content: Any, status: int = 200, error: str = "") -> None:
        headers = {"Content-Type": "application/json"} | ({"X-Error-Code": error} if error else {})
        self._send(json.dumps(content).encode(), headers, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
