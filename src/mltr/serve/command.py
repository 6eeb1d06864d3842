"""`mltr serve`: predictions over an HTTP API and a web page."""

from __future__ import annotations

import argparse
from pathlib import Path

from mltr.errors import UsageError
from mltr.predict.options import ENGINES, VIEWS_HELP, parse_views
from mltr.serve.listening import DEFAULT_PORT, HOST, check_address
from mltr.serve.settings import KEYS_VARIABLE, Settings, limits, read_keys


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
        help="also accept this host name, such as photos.example; IP addresses, localhost, this "
        "machine's name and --host are always accepted (repeatable)",
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
    add("--views", metavar="VIEW,...", help=VIEWS_HELP)
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
    check_address(args.host, args.port)
    from mltr.serve.server import serve  # needs the packages that were looked for

    serve(args.bundle, settings, *places, replicas=replicas, views=views, engine=engine)
    return 0
