"""`mltr predict`: predict labels for any number of photos."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mltr.predict.options import (
    DEFAULT_THRESHOLD,
    ENGINES,
    FORMATS,
    NAMINGS,
    SHEET_PICTURES,
    TOOLS,
    VIEWS_HELP,
)

if TYPE_CHECKING:
    from mltr.predict.results import Row
    from mltr.predict.tagging import Load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr predict``."""
    add_places(parser, "a run, a folder with weights, or a file written by `mltr export`")
    _add_outputs(parser)
    add_running(parser, "predict every image again, and let --sidecars replace files")
    add = parser.add_argument
    add(
        "--threshold",
        metavar="T",
        help="minimum probability of a label, or one for each category of labels: "
        f"0.4,character=0.85 (default: the run's own, or {DEFAULT_THRESHOLD})",
    )
    add(
        "--top",
        type=int,
        metavar="K",
        help="the K best labels, whatever their probability unless --threshold is given",
    )
    add("--views", metavar="VIEW,...", help=VIEWS_HELP)
    for name, what in (("--only", "only these classes"), ("--exclude", "all classes except these")):
        what += "; category:NAME means all of that category"
        add(name, action="append", default=[], metavar="CLASS,...", help=what)
    add(
        "--engine",
        choices=[*ENGINES, "ray"],
        default="auto",
        help="what runs the network: torch, onnx (onnxruntime, for ONNX files), openvino, or the "
        "fastest that is installed and agrees on the first photos of a long job (auto, the "
        "default); ray: several processes, any of which may fail, on the cluster at RAY_ADDRESS, "
        "else on this machine",
    )
    add(
        "--replicas",
        type=int,
        metavar="N",
        help="processes with --engine ray (default: one per GPU, or one per two cores)",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """Declare where the labels go."""
    add = parser.add_argument
    add("--out", metavar="FILE", help="write the results to this file, replacing it (- for stdout)")
    add(
        "--format",
        choices=["table", *dict.fromkeys(FORMATS.values()), *TOOLS],
        help=f"format of the results; default: by the extension of --out ({', '.join(FORMATS)}), "
        "else a table on a terminal and JSON lines in a pipe; fiftyone and label-studio are JSON "
        "for these programs",
    )
    add("--json", metavar="FILE", help="short for --format jsonl --out FILE")
    add(
        "--sidecars",
        action="store_true",
        help="write the labels of photo.jpg to photo.txt beside it, separated by commas; existing "
        "files are kept",
    )
    add(
        "--xmp",
        action="store_true",
        help="add the labels to the keywords in photo.jpg.xmp beside photo.jpg; its other content "
        "is kept",
    )
    add(
        "--xmp-naming",
        choices=NAMINGS,
        default=NAMINGS[0],
        help=f"file name for --xmp: {NAMINGS[0]} as digiKam, darktable and most others "
        f"expect (the default), or {NAMINGS[1]} as Lightroom does",
    )
    add("--sheet", metavar="FILE", help=f"contact sheet of the first {SHEET_PICTURES} images")


def add_places(parser: argparse.ArgumentParser, network: str, nargs: str = "+") -> None:
    """Declare the network and the images, for every command that processes many of them."""
    parser.add_argument("bundle", metavar="RUN", help=network)
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs=nargs,
        help="an image, a folder (searched recursively), a quoted pattern, a Parquet table of "
        "images or paths, shards written by `mltr shard`, or - for a list on stdin",
    )


def add_running(parser: argparse.ArgumentParser, anew: str) -> None:
    """Declare how the images are processed; `anew` says what --overwrite does."""
    add = parser.add_argument
    add("--overwrite", action="store_true", help=f"start from the beginning: {anew}")
    add(
        "--follow-links",
        action="store_true",
        help="write through links to their targets (default: refuse them)",
    )
    add("--batch-size", type=int, default=32, metavar="N", help="images per batch (default: 32)")
    add("--workers", type=int, metavar="N", help="threads that open images")
    add("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator if available)")


def run(args: argparse.Namespace) -> int:
    """Predict for all images; 1 if some can't be read, or their sidecars written, else 0."""
    from mltr.predict.predictor import load
    from mltr.predict.tagging import run_by

    engine = None if args.engine == "ray" else args.engine
    return run_by(args, lambda bundle, device, size: load(bundle, device, size, engine))


def run_like(
    args: argparse.Namespace, load_network: Load, write: Callable[[Iterable[Row]], object]
) -> int:
    """Go through the images for another command, whose other options are those of `predict`.

    `write` gets the rows, and writes `args.out` and what else it makes of them.
    """
    from mltr.predict.tagging import run_by

    whole = argparse.ArgumentParser()
    add_arguments(whole)
    defaults = vars(whole.parse_args(["RUN", "PATH"]))
    options = argparse.Namespace(**defaults | vars(args))
    return run_by(options, load_network, write)
