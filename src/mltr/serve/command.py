"""`mltr serve`: predictions over an HTTP API and a web page."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import gc
import importlib.util
import ipaddress
import logging
import math
import socket
import sys
from pathlib import Path
from typing import TextIO

import numpy as np

from mltr.errors import MltrError, UsageError
from mltr.files.writing import to_json, write_json
from mltr.predict.engines import ENGINES, Choosing
from mltr.predict.views import HELP, parse_views
from mltr.serve.settings import KEYS_VARIABLE, Settings, limits, read_keys

HOST = "127.0.0.1"  #: reachable only from this machine
DEFAULT_PORT = 8000
PACKAGES = (
    "fastapi", "fastapi_offline", "httptools", "prometheus_client", "python_multipart", "uvicorn",
)  # fmt: skip
BACKLOG = 512  #: connections waiting to be accepted
OTHER_FILES = 64  #: open files of a server besides its connections


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("bundle", metavar="RUN", help="a training run, or a folder with weights")
    add("--host", default=HOST, help="address to listen on (default: only this machine)")
    add(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"default: {DEFAULT_PORT}; 0 picks a free port",
    )
    add(
        "--keys",
        metavar="FILE",
        help="file of API keys, one per line; each request must have one of them; also "
        f"{KEYS_VARIABLE}",
    )
    add(
        "--cors",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="allow pages of another site, such as https://photos.example, to call the API "
        "(repeatable)",
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="also accept this host name, such as photos.example; IP addresses, localhost and "
        "--host are always accepted (repeatable)",
    )
    add("--json", metavar="FILE", help="write the address as JSON (- for stdout)")
    add("--device", help="cpu, cuda, ... (default: an accelerator if available)")
    add(
        "--engine",
        choices=[*ENGINES, "ray"],
        default="auto",
        help="what runs the network: torch, onnx (onnxruntime, for ONNX files), openvino, or the "
        "fastest that is installed and agrees on the first photos (auto, the default); ray: "
        "replicas, so that requests survive the death of one, on the cluster at RAY_ADDRESS, else "
        "on this machine",
    )
    add(
        "--replicas",
        type=int,
        metavar="N",
        help="replicas of the network with --engine ray (default: 1)",
    )
    add("--views", metavar="VIEW,...", help=HELP)
    for limit in limits():
        add(
            f"--{limit.name.replace('_', '-')}",
            type={"int": int, "float": float}[str(limit.type)],
            default=limit.default,
            metavar="N",
            help=f"{limit.metadata['help']} (default: {limit.default})",
        )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    if args.replicas is not None and args.engine != "ray":
        raise UsageError("--replicas needs --engine ray; without Ray, use --network-threads")
    if args.replicas is not None and args.replicas < 1:
        raise UsageError(f"--replicas {args.replicas} must be at least 1")
    replicas = (args.replicas or 1) if args.engine == "ray" else 0
    settings = Settings(
        name=Path(args.bundle).resolve().name,
        keys=read_keys(args.keys),
        cors_origins=tuple(args.cors),
        hosts=tuple(args.allow_host),
        **{limit.name: getattr(args, limit.name) for limit in limits()},
    )
    places = args.host, args.port, args.device, args.json
    engine = "auto" if replicas else args.engine
    views = parse_views(args.views)
    serve(args.bundle, settings, *places, replicas=replicas, views=views, engine=engine)
    return 0


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
    address can't be used or packages are missing.
    """
    check_address(host, port)
    import uvicorn

    from mltr.predict.predictor import load
    from mltr.serve.app import create_app
    from mltr.serve.connections import KEEP_ALIVE_S, protocol
    from mltr.serve.replicas import running

    hosts = ("localhost", host, socket.gethostname(), *settings.hosts)
    settings, backlog = _fit_to_files(dataclasses.replace(settings, hosts=hosts))
    with _bind(host, port) as listener, contextlib.ExitStack() as stack:
        address = _address(host, listener.getsockname()[1])
        stdout = sys.stdout
        if replicas:
            # Keep the output of Ray's processes out of stdout.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            predictor = stack.enter_context(running(bundle, device, replicas, settings))
            threads = replicas * settings.network_threads
            settings = dataclasses.replace(settings, network_threads=threads)
        else:
            predictor = load(bundle, device, engine=engine)
            if isinstance(predictor.network, Choosing):
                predictor.network.images_left = lambda: math.inf
                predictor.network.prepare()  # rather than while a request waits
            _share_cores(settings.network_threads)
        predictor.views = views
        side = predictor.preprocess.image_size
        predictor.logits(np.zeros((1, side, side, 3), np.uint8))  # fail before serving
        if not settings.keys and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
            print(
                f"Anyone who can reach {address} can use it; --keys FILE requires a key.",
                file=sys.stderr,
            )
        _log_to_stderr()

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                # Exempt everything loaded so far from garbage collection, which paused the server
                # repeatedly and cost about 5 % of its throughput.
                gc.collect()
                gc.freeze()
                if not quiet:
                    _announce(address, settings.name, len(predictor.classes), json_file, stdout)

        config = uvicorn.Config(
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
        try:
            Server(config).run([listener])
        except KeyboardInterrupt:  # uvicorn raises it again after its shutdown
            pass
        finally:
            gc.unfreeze()  # otherwise extensions report frozen objects as leaks at exit


def check_address(host: str, port: int) -> None:
    """Raise `MltrError` if the address can't be used or packages are missing."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MltrError(f"serving needs more packages: pip install 'mltr[serve]' ({package})")
    _bind(host, port).close()


def _fit_to_files(settings: Settings) -> tuple[Settings, int]:
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


def _share_cores(network_threads: int) -> None:
    """Divide the cores among the batches that are in the network at a time."""
    if network_threads > 1 and "torch" in sys.modules:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // network_threads))


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, so that an address in use fails early."""
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


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _announce(address: str, name: str, labels: int, json_file: str | None, stdout: TextIO) -> None:
    if json_file == "-":
        told = to_json({"address": address, "model": name, "labels": labels})
        print(told, end="", file=stdout, flush=True)
        return
    if json_file:
        write_json(json_file, {"address": address, "model": name, "labels": labels})
    print(
        f"Serving {name} with {labels} labels at {address}\n"
        f"Open it in a browser to tag photos. API: {address}/docs. Ctrl-C stops the server.",
        file=stdout,
        flush=True,
    )


def _log_to_stderr() -> None:
    """Log one JSON object per line, or a short line on a terminal."""
    from mltr.serve.observe import JsonFormatter, ShortFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(ShortFormatter() if sys.stderr.isatty() else JsonFormatter())
    for name, level in (("mltr.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
