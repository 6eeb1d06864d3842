"""`mltr demo`: train on composed scenes, print the figures, and write a page with the results."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mltr.errors import UsageError
from mltr.serve.listening import DEFAULT_PORT, HOST, check_address
from mltr.serve.settings import Settings

RECIPE = "scenes_nano"
PICTURES = 24  #: number of test scenes on the page
PAGE = "index.html"
# Takes at most a minute and learns little; shows that everything works.
QUICK = ("--train.epochs=2", "--data.scenes.train=512", "--data.scenes.test=200")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--out", metavar="RUN", default="runs/demo", help="default: runs/demo")
    parser.add_argument("--overwrite", action="store_true", help="replace a demo in that folder")
    parser.add_argument("--quick", action="store_true", help="train for seconds; learns little")
    parser.add_argument(
        "--serve", action="store_true", help="afterwards serve the network until Ctrl-C"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"port of --serve (default: {DEFAULT_PORT})",
    )
    parser.add_argument("--json", metavar="FILE", help="write the test figures (- for stdout)")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Train the demo's recipe and write its page; with --serve, serve the network."""
    from mltr.config.recipe import find_recipe, load_recipe
    from mltr.files.locks import locked_out
    from mltr.files.writing import write_figures
    from mltr.runs.folder import open_run
    from mltr.training.train import train

    if overrides and args.quick:
        raise UsageError("--quick has its own settings: leave it out to use yours")
    if args.serve:
        check_address(HOST, args.port)  # fail before training
    if (page := Path(args.out) / PAGE).exists() and not args.overwrite:
        raise UsageError(f"{page} exists: choose another --out, or use --overwrite")
    config = load_recipe(find_recipe(RECIPE), QUICK if args.quick else overrides)
    with locked_out(Path(args.out)):
        folder = open_run(Path(args.out), config, resume=False, overwrite=args.overwrite)
        figures = train(config, folder, quiet=args.json == "-")
        page = write_demo_page(folder.path, figures)
    if args.json:
        write_figures(args.json, figures)
    if args.json != "-":
        place = shlex.quote(str(folder.path))
        print(
            f"\nOpen {page} in a browser: it shows test scenes with predicted labels.\n"
            f"The weights are in {folder.path}. Next:\n"
            f"  mltr predict {place} PHOTO...      predict labels\n"
            f"  mltr evaluate {place}              compute every metric\n"
            "  mltr data YOUR_PHOTOS                  check your own data, then train on it"
        )
    if args.serve:
        from mltr.serve.server import serve

        pictures = save_scenes(folder.path)
        if args.json != "-":
            print(f"\nScenes to try on the page: {pictures}")
        serve(folder.path, Settings(name="demo"), port=args.port, quiet=args.json == "-")
    return 0


def save_scenes(run: Path) -> Path:
    """Write the first test scenes as pictures to RUN/scenes; return that folder."""
    from mltr.config.recipe import load_recipe
    from mltr.data.sources import open_splits
    from mltr.pictures.gallery import write_picture
    from mltr.predict.predictor import to_image
    from mltr.weights.metadata import RECIPE_FILE

    test = open_splits(load_recipe(run / RECIPE_FILE).data).test
    folder = run / "scenes"
    for number, record in enumerate(test.records[:PICTURES], start=1):
        write_picture(folder / f"scene-{number:02}.png", to_image(record.image))
    return folder


def write_demo_page(run: Path, figures: dict[str, Any]) -> Path:
    """Write RUN/index.html and RUN/scenes.png: test scenes with judged labels, and curves."""
    from mltr.config.recipe import load_recipe
    from mltr.data.sources import open_splits
    from mltr.evaluation.predictions import load_predictions, make_tiles
    from mltr.pictures.gallery import contact_sheet, write_page, write_picture
    from mltr.weights.metadata import PREDICTIONS_FILE, RECIPE_FILE

    test = open_splits(load_recipe(run / RECIPE_FILE).data).test
    saved = load_predictions(run / PREDICTIONS_FILE)
    shown = range(min(PICTURES, len(test)))
    tiles = make_tiles(test.subset(shown, "test"), saved.subset(shown))
    write_picture(run / "scenes.png", contact_sheet(tiles, columns=6))
    headline = {
        "test mAP": f"{100 * figures['map']:.1f} %",
        "overall F1": f"{100 * figures['of1']:.1f} %",
        "test scenes": str(figures["images"]),
        "parameters": f"{figures['parameters'] / 1e6:.1f} M",
        "training": f"{figures['train_seconds'] / 60:.1f} min",
    }
    pictures = [
        ("Training loss, and mAP on the validation scenes", "curves.png"),
        ("Precision and recall on the test scenes", "precision_recall.png"),
        ("Average precision of each class on the test scenes", "average_precision.png"),
    ]
    write_page(
        run / PAGE,
        "MlTr learns to name what is in a picture",
        headline,
        tiles,
        [(caption, (run / name).read_bytes()) for caption, name in pictures],
        intro=(
            "Each scene contains one to five handwritten digits of very different sizes. Some look "
            "alike (1 and 7, 3 and 8, 4 and 9), others usually occur together (2 with 5, 6 with "
            "0). Neither these scenes nor this handwriting were in the training data."
        ),
    )
    return run / PAGE
