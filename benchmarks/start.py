"""What a start from the weights that come with the package is worth where labels are few.

    python benchmarks/start.py --data MIML --seeds 0 1 2
    python benchmarks/start.py --data MIML --seeds 0 1 2 --start RUN   # weights of your own

mltr_nano at 96 px on MIML, with the labels of 100 and 300 training photos; validation and test
photos are always the same. Both arms train the same network on the same photos for the same number
of epochs, and so for the same time. What is finished is not repeated: give the same command again
to go on.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from timing import about

from mltr.config.recipe import find_recipe, load_recipe
from mltr.config.schema import DataConfig
from mltr.data.sources import open_splits
from mltr.files.writing import write_figures
from mltr.runs.folder import open_run
from mltr.training.train import train

EPOCHS = {100: 60, 300: 30}  #: by the number of labelled photos
OPTIONS = [
    "--model.image_size", "96", "--data.base_size", "128", "--train.batch_size", "32",
    "--train.eval_every", "10",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="MIML", help="folder of the photos")
    parser.add_argument("--start", default="start", help="as model.init (default: the package's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--labels", type=int, choices=EPOCHS, nargs="+", default=[*EPOCHS])
    parser.add_argument("--arms", choices=("scratch", "start"), nargs="+")
    parser.add_argument("--lr", default="1e-3", help="of the start; from scratch it is 1e-3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="runs/start")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(args.threads)
    rows = []
    for labels in args.labels:
        table = Path(args.out) / f"{labels}.csv"
        write_table(Path(args.data).resolve(), table, labels)
        for arm in args.arms or ("scratch", "start"):
            found = [measure(args, table, labels, arm, seed) for seed in args.seeds]
            rows.append({"labels": labels, "arm": arm, "map": found, "epochs": EPOCHS[labels]})
            scores = ", ".join(f"{100 * score:.1f}" for score in found)
            print(f"{labels} labels, {arm}: {scores}; mean {100 * fmean(found):.1f}", flush=True)
    write_figures(
        str(Path(args.out) / "start.json"), {"about": about(threads=args.threads), "rows": rows}
    )


def measure(args: argparse.Namespace, table: Path, labels: int, arm: str, seed: int) -> float:
    """Return test `map` of an arm, trained unless that is done."""
    out = Path(args.out) / f"{labels}-{arm}-{seed}"
    if not (out / "metrics.json").is_file():
        own = ["--model.init", args.start, "--train.lr", args.lr] if arm == "start" else []
        images = str(Path(args.data).resolve() / "images")
        options: Sequence[str] = [
            *OPTIONS, *own, "--data.root", str(table), "--data.images", images,
            "--train.epochs", str(EPOCHS[labels]), "--train.seed", str(seed),
            "--train.threads", str(args.threads),
        ]  # fmt: skip
        config = load_recipe(find_recipe("scratch"), options)
        train(config, open_run(out, config, resume=False, overwrite=True), quiet=True)
    figures: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return float(figures["map"])


def write_table(data: Path, table: Path, labels: int) -> None:
    """Write a table of training photos, evenly spaced, and of all for validation and test."""
    splits = open_splits(DataConfig(root=str(data), labels="miml_labels_1.csv", images="images"))
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *splits.train.classes, "split"])
        for split in splits:
            wanted = labels if split.name == "train" else len(split)
            for place in range(wanted):
                record = split.records[place * len(split) // wanted]
                writer.writerow([record.name, *record.labels.tolist(), split.name])


if __name__ == "__main__":
    main()
