"""Ray: the cluster that `RAY_ADDRESS` names, else processes of this machine, for it alone."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from mltr.download import first_line
from mltr.errors import MltrError
from mltr.exported import require

ADDRESS_VARIABLE = "RAY_ADDRESS"
CONNECT_TIMEOUT_S = 10
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns that this will be the default
}
OWN = {
    # Ray knows no other way to make its processes listen on the loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",  # not all of them do; and other users of this machine are there too
}


@contextlib.contextmanager
def connected() -> Iterator[Any]:
    """Give Ray, for use within the context: quiet, without a dashboard, telling nobody.

    A Ray of this machine's own ends with the context, in which SIGTERM raises `SystemExit`. Raises
    `MltrError` if Ray isn't installed or the cluster can't be reached.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    os.environ.update(QUIET)
    if not address and "ray" not in sys.modules:  # which reads them once
        os.environ.update(OWN)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = require("ray", "ray", "--engine ray")
    previous = signal.getsignal(signal.SIGTERM)
    try:
        _connect(ray, address)
        signal.signal(signal.SIGTERM, _leave)  # in place of Ray's own
        yield ray
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, previous)


def _connect(ray: Any, address: str | None) -> None:
    try:
        if address and (found := re.fullmatch(r"([^:/]+):(\d+)", address)):
            # Ray would look for it for minutes.
            socket.create_connection((found[1], int(found[2])), CONNECT_TIMEOUT_S).close()
        ray.init(
            address or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except OSError as error:
        raise MltrError(
            f"no Ray cluster answers at {ADDRESS_VARIABLE}={address} ({first_line(error)}): start "
            "one by `ray start --head`, set RAY_AUTH_MODE=token if it asks for one, or unset "
            f"{ADDRESS_VARIABLE} to use this machine alone"
        ) from error


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
