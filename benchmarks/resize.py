"""Gain of a resized network over a new one at the larger size.

    python benchmarks/resize.py --data MIML --out runs/resize

Trains mltr_nano with absolute positions at 96 px and windows of 3, and resizes it to 128 px and
windows of 4, so that positions, relative tables and cross-window projections all change. Compares
on the test photos: the resized network, the same after a short fine-tune, and a new network trained
at 128 px for as many epochs as the fine-tune, which takes the same time.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mltr.config.recipe import find_recipe, load_recipe
from mltr.evaluation.open_run import open_scored
from mltr.evaluation.predictions import predict_split
from mltr.files.writing import write_figures
from mltr.metrics import evaluate
from mltr.runs.folder import open_run
from mltr.training.train import train
from mltr.weights.bundle import save_bundle
from mltr.weights.resize import resize_bundle

LARGE = ["--model.image_size", "128", "--model.overrides.window_size", "4"]
LARGE += ["--data.base_size", "176"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="MIML", help="folder of the photos")
    parser.add_argument("--out", default="runs/resize")
    parser.add_argument("--epochs", type=int, default=40, help="epochs at 96 px")
    parser.add_argument("--more-epochs", type=int, default=10, help="epochs at 128 px")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of the fine-tune")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(2)
    out = Path(args.out)
    more = [
        "--train.epochs",
        str(args.more_epochs),
        "--train.warmup",
        f"{1 / args.more_epochs:.4g}",
    ]
    before = run(args.data, out / "small", ["--train.epochs", str(args.epochs)])
    resized = resize(out / "small", out / "resized")
    init = ["--model.init", str(out / "resized"), "--train.lr", str(args.lr)]
    tuned = run(args.data, out / "tuned", [*LARGE, *more, *init])
    new = run(args.data, out / "new", [*LARGE, *more])
    table = {
        f"96 px, {args.epochs} epochs": before,
        "resized to 128 px, not trained on": {"map": resized},
        f"resized, {args.more_epochs} epochs more": tuned,
        f"128 px from nothing, {args.more_epochs} epochs": new,
    }
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}"
    )
    for name, row in table.items():
        seconds = f"{row['train_seconds']:.0f} s" if "train_seconds" in row else ""
        print(f"{name:<40} test map {100 * row['map']:6.2f}  {seconds}")
    write_figures(str(out / "resize.json"), table)


def run(data: str, out: Path, options: list[str]) -> dict[str, Any]:
    """Train with the recipe for MIML and the given options unless done; return the figures."""
    if (out / "metrics.json").is_file():
        figures: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        return figures
    fixed = ["--data.root", data, "--model.overrides.absolute_position", "true"]
    config = load_recipe(find_recipe("miml_nano"), fixed + options)
    return train(config, open_run(out, config, resume=False, overwrite=True), quiet=True)


def resize(source: Path, out: Path) -> float:
    """Resize a run to 128 px and windows of 4; return its test map."""
    opened = open_scored(source)
    bundle = resize_bundle(opened.bundle, 128, window_size=4)
    model = bundle.config["model"]
    save_bundle(
        out, model=bundle.model, name=model["name"], overrides=model["overrides"],
        classes=bundle.classes, preprocess=bundle.preprocess,
    )  # fmt: skip
    scores = predict_split(bundle.model, opened.splits.test, bundle.preprocess)
    return evaluate(scores.probs, scores.targets)["map"]


if __name__ == "__main__":
    main()
