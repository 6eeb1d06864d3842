"""Ray: the cluster that `RAY_ADDRESS` names, else processes of this machine, for it alone."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mltr.errors import MltrError
from mltr.files.download import first_line
from mltr.machine.threads import told_threads
from mltr.predict.exported import require
from mltr.predict.predictor import Predictor, load

ADDRESS_VARIABLE = "RAY_ADDRESS"
CONNECT_TIMEOUT_S = 10
QUIET = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what its processes tell would go to stdout, among results
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
            f"no Ray cluster responds at {ADDRESS_VARIABLE}={address} ({first_line(error)}): start "
            "one with `ray start --head`, set RAY_AUTH_MODE=token if it requires a token, or unset "
            f"{ADDRESS_VARIABLE} to use only this machine"
        ) from error


@dataclass(frozen=True)
class Share:
    """What each of some equal processes gets of a cluster."""

    count: int  #: of the processes
    resources: dict[str, float]  #: in Ray's words
    threads: int  #: for the products of a network


def divide(ray: Any, device: str | None, count: int | None) -> Share:
    """Divide the cluster's GPUs, or its cores if it has none or `device` is cpu.

    Without a count, each GPU has a process, or each two cores. Raises `MltrError` if there is
    nothing to divide.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if device != "cpu" else 0
    cpus = [node["CPU"] for node in nodes if node.get("CPU")]
    count = count or gpus or max(1, int(sum(cpus)) // 2)
    cores = share(cpus, count)
    threads = max(1, min(told_threads() or int(cores), int(cores)))
    # Ray takes one core for an actor that doesn't say how many.
    own_gpus = {"num_cpus": 0.0, "num_gpus": share([1.0] * gpus, count)} if gpus else None
    return Share(count, own_gpus or {"num_cpus": cores}, threads)


def share(sizes: Sequence[float], count: int) -> float:
    """Return the largest part of which `count` fit into nodes of these sizes.

    Raises `MltrError` if there is no node.
    """
    if not sizes:
        raise MltrError("the Ray cluster has no CPUs for the network")
    parts = sorted({size / n for size in sizes for n in range(1, count + 1)}, reverse=True)
    fitting = (p for p in parts if sum(int(size / p + 1e-9) for size in sizes) >= count)
    return math.floor(next(fitting) * 1e4 + 1e-6) / 1e4  # Ray counts no finer


def locate(bundle: str | Path) -> str:
    """Return where the bundle is for processes that have another working directory."""
    return str(Path(bundle).resolve()) if Path(bundle).exists() else str(bundle)


def load_same(
    bundle: str,
    fingerprint: str,
    device: str | None,
    threads: int,
    batch_size: int = 32,
    views: tuple[str, ...] = (),
) -> Predictor:
    """Load a bundle in a process of the cluster; raises `MltrError` if it is another one there."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch or onnxruntime is imported
    predictor = load(bundle, device, batch_size)
    predictor.views = views
    if predictor.fingerprint != fingerprint:
        raise MltrError(f"{bundle} has changed since the command started: run it again")
    return predictor


def reason(message: str) -> str:
    """Return the last line of what Ray tells of an error, less the type of that."""
    return re.sub(r"^\s*[\w.]+: ", "", message.strip().splitlines()[-1])


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
