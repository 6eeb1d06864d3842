"""How many deliberately flipped labels `mltr audit` finds, and what correcting them gains.

    python benchmarks/audit_flips.py --data MIML --out runs/audit_flips

Flips a tenth of all labels of the training and validation photos of MIML, chosen uniformly. Since
most labels are 0, most flips add a wrong label. Trains on the flipped labels, audits that run, and
trains again on two corrected versions: with the audit's first k suggestions all accepted, where k
is the number of flips, and with only the correct ones among these accepted, as by a reviewer who
knows the truth. Clean labels are the upper bound. All figures are on the clean test photos.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mltr.config.recipe import find_recipe, load_recipe
from mltr.data.records import Splits
from mltr.data.sources import open_splits
from mltr.diagnosis.corrections import Corrections, as_corrections, write_corrected
from mltr.diagnosis.label_issues import Audit, audit
from mltr.evaluation.open_run import open_scored
from mltr.files.writing import write_figures
from mltr.runs.folder import open_run
from mltr.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="MIML", help="folder of the photos")
    parser.add_argument("--out", default="runs/audit_flips")
    parser.add_argument("--rate", type=float, default=0.1, help="share of the labels flipped")
    parser.add_argument("--seed", type=int, default=0, help="seed of the flips and the training")
    parser.add_argument("--epochs", type=int, default=70)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folds", type=int, default=0, help="also audit with N networks")
    parser.add_argument("--no-retraining", action="store_true", help="only measure the audit")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = Path(args.out)
    clean = open_splits(load_recipe(find_recipe("miml_nano"), ["--data.root", args.data]).data)
    flips = choose_flips(clean, args.rate, args.seed)
    write_corrected(out / "flipped", clean, flips)
    flipped = fit(args, "flipped")
    run = open_scored(out / "flipped-run")
    found = audit(run, ["train", "val"])
    table: dict[str, Any] = {
        "date": str(date.today()), "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__, "options": vars(args), "flips": count(flips),
        "audit": measure(found, flips),
    }  # fmt: skip
    if args.folds:
        by_networks = audit(run, ["train", "val"], folds=args.folds, folder=out / "folds")
        table["audit by networks"] = measure(by_networks, flips)
    table["test map"] = {"flipped": flipped}
    if not args.no_retraining:
        table["test map"] |= retrain(args, clean, run.splits, found, flips)
    report(table)
    write_figures(str(out / "audit_flips.json"), table)


def choose_flips(clean: Splits, rate: float, seed: int) -> Corrections:
    """Return the flips: labels of training and validation photos, chosen uniformly."""
    images = [(split, record) for split in (clean.train, clean.val) for record in split]
    classes = len(clean.train.classes)
    cells = len(images) * classes
    chosen = np.random.default_rng(seed).choice(cells, round(rate * cells), replace=False)
    flips: Corrections = {}
    for cell in sorted(chosen):
        split, record = images[cell // classes]
        labels = flips.setdefault((split.name, record.name), {})
        labels[int(cell % classes)] = int(1 - record.labels[cell % classes])
    return flips


def count(changes: Corrections) -> int:
    return sum(map(len, changes.values()))


def fit(args: argparse.Namespace, name: str) -> float:
    """Train on OUT/NAME/corrected.csv unless done; return the test map."""
    folder = Path(args.out) / f"{name}-run"
    if (folder / "metrics.json").is_file():
        return float(json.loads((folder / "metrics.json").read_text())["map"])
    config = load_recipe(
        find_recipe("miml_nano"),
        [
            f"--data.root={Path(args.out) / name / 'corrected.csv'}",
            f"--model.image_size={args.image_size}", f"--train.epochs={args.epochs}",
            f"--train.warmup={min(5 / args.epochs, 1 / 8):.4g}",
            f"--train.threads={args.threads}", f"--train.seed={args.seed}",
        ],
    )  # fmt: skip
    folder_of_run = open_run(folder, config, resume=False, overwrite=True)
    return float(train(config, folder_of_run, quiet=True)["map"])


def is_flip(found: Audit, flips: Corrections) -> list[bool]:
    """Return whether the label of each issue was flipped, worst issue first."""
    return [
        issue.class_index in flips.get((found.splits[issue.row], image_name(found, issue.row)), {})
        for issue in found.issues
    ]


def image_name(found: Audit, row: int) -> str:
    """Return an image's name in the clean table; the flipped table has full paths."""
    return Path(found.records[row].name).name


def measure(found: Audit, flips: Corrections) -> dict[str, Any]:
    right = np.array(is_flip(found, flips))
    k, likely = count(flips), len(found.likely)
    rate = k / len(found.issues)
    return {
        "labels": len(found.issues),
        "precision at the number of flips": float(right[:k].mean()),
        "three times the flip rate": 3 * rate,
        "precision at 100": float(right[:100].mean()),
        "likely errors": likely,
        "of these flips": float(right[:likely].mean()) if likely else None,
        "flips among these": float(right[:likely].sum() / k),
    }


def retrain(
    args: argparse.Namespace, clean: Splits, flipped: Splits, found: Audit, flips: Corrections
) -> dict[str, float]:
    """Train on both versions of corrected labels and on the clean ones; return the test maps."""
    out = Path(args.out)
    first = found.issues[: count(flips)]
    right = [issue for issue, hit in zip(first, is_flip(found, flips), strict=False) if hit]
    write_corrected(out / "accepted", flipped, as_corrections(found, first))
    write_corrected(out / "reviewed", flipped, as_corrections(found, right))
    write_corrected(out / "clean", clean, {})
    return {name: fit(args, name) for name in ("accepted", "reviewed", "clean")}


def report(table: dict[str, Any]) -> None:
    print(f"{table['date']}, {table['machine']}, torch {table['torch']}; {table['flips']} flips")
    for name in ("audit", "audit by networks"):
        for key, value in table.get(name, {}).items():
            print(f"{name}: {key:<36} {value if isinstance(value, int) else f'{value:.3f}'}")
    for name, value in table["test map"].items():
        print(f"test map, labels {name:<12} {100 * value:6.2f}")


if __name__ == "__main__":
    main()
