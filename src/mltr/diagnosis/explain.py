"""`mltr explain`: show where in a picture the evidence for a label lies.

There are two methods. `evidence`: with a pooled linear head or CSRA, the logit is a sum over
positions, and the map shows its terms, positive and negative; with query heads it shows where the
label's query attended. `rollout`: attention rollout (Abnar and Zuidema, arXiv 2005.00928) traces
the label's evidence in the final map back to the patches.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltr.config.schema import SPLITS
from mltr.diagnosis import METHODS
from mltr.errors import BrokenImage, UsageError
from mltr.terminal import make_console, printable

if TYPE_CHECKING:
    from PIL import Image

    from mltr.data.records import PackedImage
    from mltr.diagnosis.evidence import Explanation
    from mltr.predict.predictor import Predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a training run, or a folder with weights")
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="images, or folders of images")
    parser.add_argument(
        "--label",
        action="append",
        metavar="NAME",
        help="label to explain (repeatable; default: all at or above their thresholds)",
    )
    parser.add_argument(
        "--method", choices=METHODS, default="evidence", help="see above (default: evidence)"
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        default="explained",
        help="folder for the pictures (default: explained)",
    )
    parser.add_argument(
        "--pointing", action="store_true", help="score the maps against the boxes of the run's data"
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="images of --pointing (default: test)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=1000,
        help="maximum number of images for --pointing (default: 1000)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON (- for stdout)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: an accelerator if available)")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Explain pictures, or score the maps."""
    from mltr.files.writing import write_figures
    from mltr.predict.predictor import load
    from mltr.weights.metadata import RECIPE_FILE

    if bool(args.images) == args.pointing:
        raise UsageError("give either images to explain, or --pointing to score the maps")
    if args.pointing and (args.label or args.method != "evidence"):
        raise UsageError("--label and --method are for pictures: --pointing scores all class maps")
    if args.limit < 1:
        raise UsageError(f"--limit {args.limit} must be at least 1")
    console = make_console(quiet=args.json == "-")
    predictor = load(args.run, args.device)
    if args.pointing:
        figures = _point(console, predictor, args, overrides)
    else:
        if overrides:
            raise UsageError(f"{overrides[0]}: recipe fields can only be used with --pointing")
        figures, broken = _explain_all(console, predictor, args)
    if args.json:
        write_figures(args.json, figures)
    if not (Path(args.run) / RECIPE_FILE).is_file():  # a bundle, of which there are no figures
        args.next = "mltr predict {run} PHOTOS"
    return 0 if args.pointing else broken


def _explain_all(
    console: Any, predictor: Predictor, args: argparse.Namespace
) -> tuple[dict[str, Any], int]:
    """Explain every picture; report and skip those that can't be read."""
    from mltr.diagnosis.evidence import explain
    from mltr.diagnosis.overlay import HEAT_MAP_SIDE
    from mltr.predict.inputs import name_of
    from mltr.predict.predictor import to_image

    out = Path(args.out)
    figures, broken = {}, 0
    for image in _choose_images(args.images, out):
        try:
            found = explain(predictor, image, args.label, args.method, HEAT_MAP_SIDE)
        except BrokenImage as error:
            console.print(printable(f"left out, broken: {error}"))
            broken = 1
            continue
        picture = _save_overlays(out, Path(name_of(image)), to_image(image), found)
        labels = ", ".join(f"{one.label} {one.prob:.2f}" for one in found)
        console.print(printable(f"{picture}: {labels}"), soft_wrap=True)
        figures[name_of(image)] = [
            {"label": one.label, "prob": one.prob, "logit": one.logit, "is_exact": one.is_exact,
             "cells": one.cells.tolist(), "picture": str(picture)}
            for one in found
        ]  # fmt: skip
    return figures, broken


def _choose_images(arguments: Sequence[str], out: Path) -> list[Path | PackedImage]:
    """Return the images, without those that a folder has from explaining it before."""
    from mltr.predict.inputs import Inputs, exists

    own, named = out.resolve(), [Path(word).resolve() for word in arguments if exists(word)]
    images = list(Inputs(arguments))  # before the first picture is written
    if any(path.is_relative_to(own) for path in named):
        return images
    found = [one for one in images if not (isinstance(one, Path) and own in one.resolve().parents)]
    if not found:
        raise UsageError(f"no images in {', '.join(arguments)} except those in {out}")
    return found


def _save_overlays(
    folder: Path, path: Path, picture: Image.Image, found: Sequence[Explanation]
) -> Path:
    """Write the picture and a map per label side by side as PNG; return its path.

    A number is added if a file of this name exists.
    """
    from mltr.diagnosis.overlay import overlay
    from mltr.pictures.gallery import Tile, contact_sheet, write_picture

    tiles = [Tile(picture, [(one.label, one.prob) for one in found], caption=path.name)]
    tiles += [
        Tile(overlay(picture, one.heat), [(one.label, one.prob)], caption="red: for, blue: against")
        for one in found
    ]
    target = folder / f"{path.stem}.png"
    number = 2
    while target.exists():
        target = folder / f"{path.stem}-{number}.png"
        number += 1
    write_picture(target, contact_sheet(tiles, columns=min(len(tiles), 4)))
    return target


def _point(
    console: Any, predictor: Predictor, args: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
    from rich.table import Table

    from mltr.diagnosis.evidence import pointing_game
    from mltr.evaluation.open_run import open_scored

    split = open_scored(args.run, overrides).split(args.split)
    found: dict[str, Any] = pointing_game(predictor, split.records[: args.limit], split.classes)
    for error in found["broken"]:
        console.print(printable(f"left out, broken: {error}"))
    table = Table(title=f"{Path(args.run).name}, {args.split}: maximum in an object of the label")
    for heading in ("label", "hit %", "middle %", "random %", "cases"):
        table.add_column(heading, justify="left" if heading == "label" else "right")
    for name, row in found["classes"].items():
        shares = [f"{100 * row[key]:.1f}" for key in ("hit", "centre", "random")]
        table.add_row(name, *shares, str(row["cases"]))
    shares = [f"{100 * found[key]:.1f}" for key in ("hit", "centre", "random")]
    table.add_section()
    table.add_row("all", *shares, str(found["cases"]))
    console.print(table)
    low, high = 100 * found["low"], 100 * found["high"]
    console.print(f"hit: 95% interval {low:.1f}..{high:.1f}, from resampled cases")
    return found
