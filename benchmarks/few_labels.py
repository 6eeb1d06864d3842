"""Test `map` with few labels or all, in about the same time: labels alone, or help from elsewhere.

    python benchmarks/few_labels.py --data MIML --weights LITE0.pth --seeds 0 1

On MIML, with mltr_nano at 96 px. `few` uses the labels of every tenth of the training photos, `all`
those of all; validation and test photos are the same. The arms:

    supervised  the labels alone
    taught      a probe of EfficientNet-Lite0, trained on the same labels, teaches all training
                photos (`train.teacher`); the probe itself is `teacher`

What is finished is not repeated: give the same command again to go on.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import platform
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mltr.config.recipe import find_recipe, load_recipe
from mltr.config.schema import DataConfig
from mltr.data.sources import open_splits
from mltr.files.writing import write_figures
from mltr.runs.folder import open_run
from mltr.training.train import train

#: Epochs of training, on every tenth photo ten times as short as on all.
EPOCHS = {"all": {"supervised": 70, "taught": 70}, "few": {"supervised": 350, "taught": 35}}
TENTH = 144  #: of 1440 training photos
FEW = ["--train.batch_size", "32", "--train.eval_every", "10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="MIML", help="folder of the photos")
    parser.add_argument("--weights", metavar="FILE", help="ImageNet's, of Lite0, for the teacher")
    parser.add_argument("--out", default="runs/few_labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--labels", choices=sorted(EPOCHS), nargs="+", default=sorted(EPOCHS))
    parser.add_argument("--arms", choices=[*EPOCHS["all"]], nargs="+", default=[*EPOCHS["all"]])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    if "taught" in args.arms and not args.weights:
        parser.error("taught needs --weights")
    data, out = Path(args.data).resolve(), Path(args.out)
    write_few(data, out / "few.csv", TENTH)
    rows = []
    for labels in args.labels:
        for seed in args.seeds:
            for arm in args.arms:
                job = Job(args, data, out, labels, seed)
                rows.append({"labels": labels, "arm": arm, "seed": seed} | job.run(arm))
                print(rows[-1], flush=True)
        if "taught" in args.arms:
            figures = json.loads((out / f"{labels}-teacher" / "metrics.json").read_text())
            rows.append({"labels": labels, "arm": "teacher", "seed": 0, **chosen(figures)})
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}")
    for row in rows:
        print(f"{row['labels']:<5} {row['arm']:<11} seed {row['seed']}  test map "
              f"{100 * row['map']:6.2f}  {row['seconds']:5.0f} s")  # fmt: skip
    write_figures(str(out / "few_labels.json"), {"rows": rows})


def chosen(figures: dict[str, Any]) -> dict[str, float]:
    return {"map": figures["map"], "seconds": figures["train_seconds"]}


@dataclass(frozen=True)
class Job:
    """What the arms of one seed have in common."""

    args: argparse.Namespace
    data: Path
    out: Path
    labels: str
    seed: int

    @property
    def shared(self) -> list[str]:
        return ["--train.threads", str(self.args.threads)]

    @property
    def labelled(self) -> list[str]:
        if self.labels == "all":
            root, labels = self.data, "miml_labels_1.csv"
        else:
            root, labels = self.out / "few.csv", ""
        images = str(self.data / "images")
        return ["--data.root", str(root), "--data.labels", labels, "--data.images", images]

    def run(self, arm: str) -> dict[str, float]:
        """Return test map and training seconds of an arm."""
        options = [*self.shared, *self.labelled, "--train.seed", str(self.seed)]
        options += ["--train.epochs", str(EPOCHS[self.labels][arm])]
        options += FEW * (self.labels == "few")
        if arm == "taught":
            options += ["--train.teacher", str(self.teach())]
            if self.labels == "few":
                options += ["--data.unlabelled_root", str(self.data / "images")]
        out = self.out / f"{self.labels}-{arm}-{self.seed}"
        return chosen(run("miml_nano", out, options))

    def teach(self) -> Path:
        """Return a probe that knows the same labels, one for all seeds."""
        teacher = self.out / f"{self.labels}-teacher"
        weights = ["--model.init", self.args.weights]
        run("probe", teacher, [*self.shared, *self.labelled, *weights])
        return teacher


def run(recipe: str, out: Path, options: list[str]) -> dict[str, Any]:
    """Train unless that is done; return the figures."""
    if (out / "metrics.json").is_file():
        figures: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        return figures
    config = load_recipe(find_recipe(recipe), options)
    return train(config, open_run(out, config, resume=False, overwrite=True), quiet=True)


def write_few(data: Path, table: Path, labels: int) -> None:
    """Write a table of so many training photos, evenly spaced, and of all others."""
    config = DataConfig(root=str(data), labels="miml_labels_1.csv", images="images")
    splits = open_splits(config)
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
