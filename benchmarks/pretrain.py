"""Gain of masked pretraining over supervised training in the same time, with all or few labels.

    python benchmarks/pretrain.py --data MIML --out runs/pretrain_bench

On MIML. Both arms take about the same total time: only supervised, or masked image modelling on all
training photos first. `all` uses the labels of all 1445 training photos, `few` those of every
tenth. Validation and test photos are the same for all.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mltr.config.recipe import find_recipe, load_recipe
from mltr.config.schema import DataConfig
from mltr.data.sources import open_splits
from mltr.files.writing import write_figures
from mltr.runs.folder import open_run
from mltr.training.pretrain import pretrain
from mltr.training.train import train

#: Epochs of masked modelling and of training. A pretraining epoch on all photos takes about as long
#: as a training epoch on them, and ten times as long as one on every tenth photo.
ARMS = {
    "all": {"supervised": (0, 70), "pretrained": (35, 35)},
    "few": {"supervised": (0, 350), "pretrained": (25, 100)},
}
FEW = ["--train.batch_size", "32", "--train.eval_every", "10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="MIML", help="folder of the photos")
    parser.add_argument("--out", default="runs/pretrain_bench")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--labels", choices=sorted(ARMS), nargs="+", default=sorted(ARMS))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    data = Path(args.data).resolve()
    rows = []
    for seed in args.seeds:
        for labels in args.labels:
            for arm, (first, then) in ARMS[labels].items():
                out = Path(args.out) / f"{labels}-{arm}-{seed}"
                rows.append({"labels": labels, "arm": arm, "seed": seed})
                rows[-1] |= run_arm(data, out, labels, first, then, seed, args.threads)
                print(rows[-1], flush=True)
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}")
    for row in rows:
        print(f"{row['labels']:<5} {row['arm']:<11} seed {row['seed']}  test map "
              f"{100 * row['map']:6.2f}  {row['seconds']:5.0f} s")  # fmt: skip
    write_figures(str(Path(args.out) / "pretrain.json"), {"rows": rows})


def run_arm(
    data: Path, out: Path, labels: str, first: int, then: int, seed: int, threads: int
) -> dict[str, float]:
    """Pretrain for `first` epochs, train for `then`; return test map and training seconds."""
    options = ["--train.seed", str(seed), "--train.threads", str(threads)]
    options += ["--train.epochs", str(then)]
    seconds = 0.0
    if first:
        start = out / "pretrained"
        figures = run(pretrain, start, [
            "--data.root", str(data), "--train.epochs", str(first), "--train.eval_every", "5",
            "--train.seed", str(seed), "--train.threads", str(threads), "--augment.mixup", "0",
            "--augment.cutmix", "0", "--augment.jitter", "0",
        ])  # fmt: skip
        seconds += figures["train_seconds"]
        options += ["--model.init", str(start)]
    if labels == "few":
        table = out.parent / "few.csv"
        write_few(data, table)
        options += ["--data.root", str(table), "--data.labels", "", "--data.images"]
        options += [str(data / "images"), *FEW]
    else:
        options += ["--data.root", str(data)]
    figures = run(train, out / "trained", options)
    return {"map": figures["map"], "seconds": seconds + figures["train_seconds"]}


def run(job: Callable[..., dict[str, Any]], out: Path, options: list[str]) -> dict[str, Any]:
    """Run a job with the recipe for MIML unless done; return the figures."""
    if (out / "metrics.json").is_file():
        figures: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        return figures
    config = load_recipe(find_recipe("miml_nano"), options)
    return job(config, open_run(out, config, resume=False, overwrite=True), quiet=True)


def write_few(data: Path, table: Path) -> None:
    """Write a table of every tenth training photo and all validation and test photos."""
    config = DataConfig(root=str(data), labels="miml_labels_1.csv", images="images")
    splits = open_splits(config)
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *splits.train.classes, "split"])
        for split in splits:
            for record in list(split)[:: 10 if split.name == "train" else 1]:
                writer.writerow([record.name, *record.labels.tolist(), split.name])


if __name__ == "__main__":
    main()
