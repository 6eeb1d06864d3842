"""Protection against other sites' pages: checks of the Host, Origin and Sec-Fetch-Site headers."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mltr.serve.settings import Settings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OWN_SITES = ("same-origin", "none")  #: allowed Sec-Fetch-Site; none: typed in, or a bookmark


class Gate:
    """Refuses requests to unknown host names, and requests from other sites' pages.

    The first prevents DNS rebinding (a site whose name is made to resolve to this machine), the
    second cross-site forms and scripts. Clients other than browsers send neither Origin nor
    Sec-Fetch-Site and are allowed.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = {_name_in(host) or host.lower() for host in settings.hosts}
        self._origins = settings.cors_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] == "http" and (why := self._objection(scope)):
            await JSONResponse({"detail": why}, 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _objection(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if self._hosts and (len(hosts) > 1 or not all(map(self._is_known, hosts))):
            called = ", ".join(_name_in(host) or host for host in hosts)[:100]
            return f"unknown host name {called!r}: start the server with --allow-host to accept it"
        if scope["method"] in SAFE_METHODS or self._is_own(headers, hosts):
            return ""
        return (
            "requests from other sites' pages are refused: start the server with --cors to allow "
            f"this one ({headers.get('origin', 'no origin')[:100]})"
        )

    def _is_known(self, host: str) -> bool:
        """Return whether a host is an accepted name, or an IP address, which can't be rebound."""
        name = _name_in(host)
        return name in self._hosts or _is_address(name)

    def _is_own(self, headers: Headers, hosts: list[str]) -> bool:
        """Return whether the sender is our page, a page of an allowed site, or no browser."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if origin is not None and (origin in self._origins or "*" in self._origins):
            return True
        if site is not None:  # reliable even behind a proxy that rewrites Host
            return site in OWN_SITES
        return origin is None or origin.partition("://")[2].lower() in [h.lower() for h in hosts]


def _name_in(host: str) -> str:
    """Return the name in NAME, NAME:PORT or SCHEME://NAME:PORT, in lower case; "" if none is."""
    try:
        return urlsplit("//" + (host.partition("://")[2] or host)).hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
