"""`mltr similar`: find the photos most similar to one, in a table that `mltr embed` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mltr.errors import MltrError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mltr.pictures.gallery import Tile
    from mltr.predict.feature_table import FeatureTable, Near
    from mltr.predict.predictor import Floats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr similar``."""
    add = parser.add_argument
    add("features", metavar="FEATURES", help="a table written by `mltr embed`")
    add("photo", metavar="PHOTO", help="a photo of the table, or any other")
    add("--count", type=int, default=12, metavar="N", help="photos to list (default: 12)")
    add("--sheet", metavar="FILE", help="contact sheet of the photos: .png, .jpg or .webp")
    add("--json", metavar="FILE", help="write the list as JSON (- for stdout)")
    add("--run", metavar="RUN", help="the run that made the table, if it has moved")
    add("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator if available)")


def run(args: argparse.Namespace) -> int:
    """List the photos, best first."""
    from mltr.files.writing import write_figures
    from mltr.predict.feature_table import FeatureTable
    from mltr.predict.results import write_sheet
    from mltr.predict.tagging import check_sheet
    from mltr.terminal import printable

    if args.count < 1:
        raise UsageError(f"--count {args.count} must be at least 1")
    sheet = check_sheet(args.sheet) if args.sheet else None
    table = FeatureTable.open(Path(args.features))
    own, vector = table.find(args.photo) or (None, _embed(table, args))
    found = table.nearest(vector, args.count, own)
    if args.json != "-":
        for near in found:
            print(f"{near.similarity:.3f}  {printable(near.path)}")
    if args.json:
        write_figures(args.json, {"photo": args.photo, "similar": [n._asdict() for n in found]})
    if sheet:
        photo = Path(args.photo) if own is None else table.locate(own)
        write_sheet(sheet, _tiles(table, photo, found))
    return 0


def _embed(table: FeatureTable, args: argparse.Namespace) -> Floats:
    """Return the features of a photo that isn't in the table, by the network that made it."""
    if not Path(args.photo).exists():
        raise UsageError(f"{args.photo}: no such file, and no such photo in {table.path}")
    from mltr.predict.features import load_embedder

    network = args.run or table.origin.network
    try:
        embedder = load_embedder(network, args.device)
    except MltrError as error:
        hint = "" if args.run else "; if the run has moved, give it by --run"
        raise MltrError(f"{error}{hint}") from error
    if embedder.fingerprint != table.origin.fingerprint:
        raise MltrError(
            f"{network} is another network than the one that made {table.path}: run mltr embed "
            "again, or give the run by --run"
        )
    vector: Floats = embedder(Path(args.photo)).probs
    return vector


def _tiles(table: FeatureTable, photo: Path, found: Sequence[Near]) -> list[Tile]:
    from mltr.predict.results import make_tile
    from mltr.terminal import printable

    shown = [make_tile(photo, [("the photo itself", 1.0)], printable(photo.name))]
    for near in found:
        path = table.locate(near.path)
        bar = [("similarity", max(0.0, near.similarity))]
        shown.append(make_tile(path, bar, printable(path.name)))
    return [tile for tile in shown if tile is not None]
