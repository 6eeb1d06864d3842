"""`mltr embed`: write the features of photos, for search, clustering or another classifier."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mltr.errors import UsageError
from mltr.predict.command import add_places, add_running, run_like

if TYPE_CHECKING:
    from mltr.predict.predictor import Predictor
    from mltr.predict.results import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr embed``."""
    add_places(parser, "a run, or a folder with weights")
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="Parquet table to write: the path of each image, and its features as float16",
    )
    add_running(parser, "compute all features again")


def run(args: argparse.Namespace) -> int:
    """Write the features of all images; 1 if some can't be read, else 0."""
    if not args.out.lower().endswith(".parquet"):
        raise UsageError(f"--out {args.out}: the name must end in .parquet")
    work = _Embedding(args)
    return run_like(args, work.load, work.write)


class _Embedding:
    """The network, loaded when the images have been found, and the table that it leads to."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def load(self, bundle: str, device: str | None, batch_size: int) -> Predictor:
        from mltr.predict.features import load_embedder

        self.embedder = load_embedder(bundle, device, batch_size)
        return self.embedder

    def write(self, rows: Iterable[Row]) -> None:
        from mltr.predict.cluster import locate
        from mltr.predict.feature_table import Origin, write_features

        origin = Origin(locate(self.args.bundle), self.embedder.fingerprint, str(Path.cwd()))
        write_features(Path(self.args.out), rows, origin, self.args.follow_links)
