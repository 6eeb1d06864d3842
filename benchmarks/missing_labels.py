"""Effect of missing positive labels on each loss: test `map` with a frozen network.

    python benchmarks/missing_labels.py --data COCO18 --init FILE

Positives are removed (set to 0) from the training and validation labels: each with probability 1/2,
or all but one per image. The test labels stay complete. FILE has the weights of EfficientNet-Lite0.
Features are computed once; after that, a run takes seconds.
"""

from __future__ import annotations

import argparse
import logging
import platform
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from mltr.config.recipe import find_recipe, load_recipe
from mltr.data.records import Split, Splits
from mltr.data.sources import open_splits
from mltr.files.writing import write_figures
from mltr.runs.folder import open_run
from mltr.training.train import train_on

LOSSES = {
    "bce": [],
    "bce, smoothing 0.1": ["--loss.label_smoothing=0.1"],
    "wan": [],
    "splc": [],
    "hill": [],
    "asl": [],
}
KEPT = ("all", "half", "one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="COCO18", help="the photos")
    parser.add_argument("--init", required=True, metavar="FILE", help="weights of the backbone")
    parser.add_argument("--out", default="runs/missing_labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kept", choices=KEPT, nargs="+", default=list(KEPT))
    parser.add_argument("--losses", choices=list(LOSSES), nargs="+", default=list(LOSSES))
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = [
        f"--data.root={args.data}",
        f"--model.init={args.init}",
        "--model.image_size=128",
        f"--train.epochs={args.epochs}",
        "--train.eval_every=2",
        "--loss.reduction=mean",
    ]
    rows = []
    splits = open_splits(load_recipe(find_recipe("probe"), options).data)
    print(f"{date.today()}, {platform.machine()}; test map of each seed, and their mean")
    for kept in args.kept:
        for name in args.losses:
            maps = []
            for seed in args.seeds:
                own = [f"--loss.name={name.split(',')[0]}", f"--train.seed={seed}", *LOSSES[name]]
                config = load_recipe(find_recipe("probe"), [*options, *own])
                folder = open_run(Path(args.out) / "run", config, resume=False, overwrite=True)
                thinned = Splits(
                    thin(splits.train, kept, seed), thin(splits.val, kept, seed), splits.test
                )
                maps.append(100 * train_on(config, thinned, folder, quiet=True)["map"])
            rows.append({"kept": kept, "loss": name, "maps": maps})
            shown = " ".join(f"{value:6.2f}" for value in [*maps, np.mean(maps)])
            print(f"{kept:<5} {name:<20} {shown}", flush=True)
    write_figures(str(Path(args.out) / "missing_labels.json"), {"rows": rows})


def thin(split: Split, kept: str, seed: int) -> Split:
    """Return a split with all, about half, or one of each image's positives."""
    targets, rng = split.targets, np.random.default_rng((seed, len(split)))
    chances = rng.random(targets.shape) * (targets == 1)
    if kept == "half":
        targets[(targets == 1) & (chances < 0.5)] = 0
    if kept == "one":
        targets[(targets == 1) & (chances < chances.max(axis=1, keepdims=True))] = 0
    records = [replace(r, labels=row) for r, row in zip(split, targets, strict=True)]
    return Split(split.classes, records, split.name)


if __name__ == "__main__":
    main()
