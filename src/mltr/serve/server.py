"""Runs the application of `app` with uvicorn, and announces where it listens."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import ipaddress
import logging
import math
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import uvicorn

from mltr.files.writing import to_json, write_json
from mltr.machine.threads import on_one_thread
from mltr.predict.engines import Choosing
from mltr.predict.predictor import Predictor, load
from mltr.serve.app import create_app
from mltr.serve.connections import KEEP_ALIVE_S, protocol
from mltr.serve.listening import DEFAULT_PORT, HOST, bind, fit_to_files, url_of
from mltr.serve.observe import JsonFormatter, ShortFormatter
from mltr.serve.replicas import running
from mltr.serve.settings import Settings


def serve(
    bundle: str | Path,
    settings: Settings,
    host: str = HOST,
    port: int = DEFAULT_PORT,
    device: str | None = None,
    json_file: str | None = None,
    quiet: bool = False,
    replicas: int = 0,
    views: tuple[str, ...] = (),
    engine: str = "auto",
) -> None:
    """Load a bundle and serve it until Ctrl-C or SIGTERM; accepted requests are then finished.

    With `replicas` above 0, Ray runs that many replicas of the network. Raises `MltrError` if the
    address can't be used.
    """
    hosts = ("localhost", host, socket.gethostname(), *settings.hosts)
    settings, backlog = fit_to_files(dataclasses.replace(settings, hosts=hosts))
    with bind(host, port) as listener, contextlib.ExitStack() as stack:
        stdout = sys.stdout
        if replicas:
            # Keep the output of Ray's processes out of stdout.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            predictor = stack.enter_context(running(bundle, device, replicas, settings))
            threads = replicas * settings.network_threads
            settings = dataclasses.replace(settings, network_threads=threads)
        else:
            predictor = _load(bundle, device, engine, settings.network_threads)
        predictor.views = views
        side = predictor.preprocess.image_size
        with on_one_thread():
            predictor.logits(np.zeros((1, side, side, 3), np.uint8))  # fail before serving
        own_host, own_port = listener.getsockname()[:2]
        address = url_of(host, own_port)
        if not settings.keys and not ipaddress.ip_address(own_host).is_loopback:
            print(
                f"Anyone who can reach {address} can use it; --keys FILE requires a key.",
                file=sys.stderr,
            )
        _log_to_stderr()
        told = {"address": address, "model": settings.name, "labels": len(predictor.classes)}
        announce = partial(_announce, told, json_file, stdout)
        server = _Server(_config(predictor, settings, backlog), None if quiet else announce)
        try:
            server.run([listener])
        except KeyboardInterrupt:  # uvicorn raises it again after its shutdown
            pass
        finally:
            gc.unfreeze()  # otherwise extensions report frozen objects as leaks at exit


def _load(bundle: str | Path, device: str | None, engine: str, network_threads: int) -> Predictor:
    """Load a bundle, and divide the cores among the batches that are in the network at a time."""
    predictor = load(bundle, device, engine=engine)
    if isinstance(predictor.network, Choosing):
        predictor.network.images_left = lambda: math.inf
        with on_one_thread():
            predictor.network.prepare()  # rather than while a request waits
    if network_threads > 1 and "torch" in sys.modules:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // network_threads))
    return predictor


def _config(predictor: Predictor, settings: Settings, backlog: int) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(predictor, settings),
        http=protocol(settings),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        loop="asyncio",
        lifespan="on",
        backlog=backlog,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.body_timeout_s + settings.timeout_s),
    )


class _Server(uvicorn.Server):
    """A server that calls `announce` once it accepts requests."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Exempt everything loaded so far from garbage collection, which paused the server
        # repeatedly and cost about 5 % of its throughput.
        gc.collect()
        gc.freeze()
        if self._announce is not None:
            self._announce()


def _announce(told: dict[str, object], json_file: str | None, stdout: TextIO) -> None:
    if json_file == "-":
        print(to_json(told), end="", file=stdout, flush=True)
        return
    if json_file:
        write_json(json_file, told)
    print(
        f"Serving {told['model']} with {told['labels']} labels at {told['address']}\n"
        f"Open it in a browser to tag photos. API: {told['address']}/docs. Ctrl-C stops the "
        "server.",
        file=stdout,
        flush=True,
    )


def _log_to_stderr() -> None:
    """Log one JSON object per line, or a short line on a terminal."""
    handler = logging.StreamHandler()
    handler.setFormatter(ShortFormatter() if sys.stderr.isatty() else JsonFormatter())
    for name, level in (("mltr.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
