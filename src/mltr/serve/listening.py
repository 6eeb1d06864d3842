"""Where a server listens, and how many connections it can have open."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import socket

from mltr.errors import MltrError, UsageError
from mltr.serve.settings import Settings

HOST = "127.0.0.1"  #: reachable only from this machine
DEFAULT_PORT = 8000
PACKAGES = (
    "fastapi", "fastapi_offline", "httptools", "prometheus_client", "python_multipart", "uvicorn",
)  # fmt: skip
BACKLOG = 512  #: connections waiting to be accepted
OTHER_FILES = 64  #: open files of a server besides its connections


def check_address(host: str, port: int) -> None:
    """Raise `MltrError` if the address can't be used or packages are missing."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MltrError(f"serving needs more packages: pip install 'mltr[serve]' ({package})")
    bind(host, port).close()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, so that an address in use fails early.

    Raises `MltrError`.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port} must lie in 0..65535")
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise MltrError(
                f"port {port} is in use: stop the program that listens there, or choose another "
                "with --port (0 picks a free one)"
            ) from error
        raise MltrError(f"can't listen on {host}, port {port}: {error.strerror}") from error
    return listener


def url_of(host: str, port: int) -> str:
    """Return the URL of a server."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def fit_to_files(settings: Settings) -> tuple[Settings, int]:
    """Return settings and a backlog whose connections fit the limit on open files (RLIMIT_NOFILE).

    Raises the soft limit as far as needed and possible. Up to a backlog of connections is accepted
    at once, and as many again before an excess connection is closed.
    """
    try:
        import resource
    except ImportError:  # Windows, where connections don't count as open files
        return settings, BACKLOG
    wanted = OTHER_FILES + settings.max_connections + 4 * BACKLOG
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < wanted:
        files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if files == resource.RLIM_INFINITY or files >= wanted:
        return settings, BACKLOG
    backlog = max(1, min(BACKLOG, (files - OTHER_FILES) // 8))
    most = files - OTHER_FILES - 4 * backlog
    if most < 1:
        raise MltrError(f"a server needs more than {files} open files: raise `ulimit -n`")
    return dataclasses.replace(
        settings, max_connections=min(settings.max_connections, most)
    ), backlog
