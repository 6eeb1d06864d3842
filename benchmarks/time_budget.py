"""Test `map` for the time spent: mltr_nano beside networks of like cost, each from scratch.

    python benchmarks/time_budget.py miml --data MIML --out runs/budget --plot budget.png
    python benchmarks/time_budget.py scenes --arms mltr_nano resnet18 --minutes 2
    python benchmarks/time_budget.py coco18 --data COCO18 --weights LITE0.pth --teacher RUN

The same engine, images and seeds for all. How long an epoch takes is timed first, once for each
arm, and kept in seconds.json; a budget of minutes is then the number of epochs that fit, with the
schedule laid out for them, validated once, at the end. So the figures don't depend on what else the
machine does meanwhile, and trainings may run on a faster machine to which seconds.json is copied.
What is finished is not repeated: give the same command again to go on. Time an epoch with nothing
else running.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from timing import about

from mltr.config.recipe import find_recipe, load_recipe
from mltr.files.writing import write_figures
from mltr.planning.estimate import image_side
from mltr.runs.folder import RunFolder, open_run
from mltr.training.growth import Growth
from mltr.training.train import train

WARMUP = 0.07  #: share of the epochs, as in the recipe for MIML
TIMED_EPOCHS = 3  #: the first of them isn't counted
LITE0 = "timm/tf_efficientnet_lite0"
SOURCES = ("miml", "scenes", "coco18")


@dataclass(frozen=True)
class Arm:
    """One way to train: a recipe and options, under the name that the figures bear."""

    name: str
    recipe: str
    options: list[str]


def arms(args: argparse.Namespace) -> list[Arm]:
    """Return the arms of a source."""
    return coco18_arms(args) if args.source == "coco18" else small_arms(args)


def small_arms(args: argparse.Namespace) -> list[Arm]:
    """Return networks of like cost for small pictures, by the recipe of the source."""
    window = {"miml": 6, "scenes": 4}[args.source]
    swin = {"embed_dim": 48, "num_heads": [2, 4, 8, 16], "window_size": window}
    networks: dict[str, dict[str, Any]] = {
        "mltr_nano": {},
        "timm/resnet18": {},
        "timm/swin_tiny_patch4_window7_224": swin,
        "timm/vit_tiny_patch16_224": {"patch_size": 8, "depth": 4},
    }
    shared = ["--data.root", args.data] if args.data else []
    shared += ["--train.warmup", f"{WARMUP:g}"]
    return [
        Arm(name.removeprefix("timm/"), f"{args.source}_nano", [
            *shared, "--model.name", name,
            *(text for key, value in overrides.items()
              for text in (f"--model.overrides.{key}", json.dumps(value))),
        ])
        for name, overrides in networks.items()
    ]  # fmt: skip


def coco18_arms(args: argparse.Namespace) -> list[Arm]:
    """Return networks from scratch, and, where their files are given, what weights bring."""
    data = ["--data.root", args.data, "--data.labels", "labels.csv"]
    scratch = {
        "mltr_nano": "mltr_nano",
        "ResNet-18": "timm/resnet18",
        "MobileNetV4-small": "timm/mobilenetv4_conv_small",
    }
    found = [
        Arm(name, "scratch", [*data, "--model.name", network]) for name, network in scratch.items()
    ]
    found.append(Arm("mltr_nano from the start", "scratch", [*data, "--model.init", "start"]))
    if args.teacher:
        taught = [*data, "--model.name", "mltr_nano", "--train.teacher", args.teacher]
        found.append(Arm("mltr_nano distilled", "scratch", taught))
    if args.weights:
        tuned = [*data, "--model.name", LITE0, "--model.init", args.weights]
        found.append(Arm("EfficientNet-Lite0 fine-tuned", "photos", tuned))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("--data", metavar="FOLDER", help="folder of the photos")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="some of them")
    parser.add_argument("--weights", metavar="FILE", help="coco18: ImageNet's, of Lite0")
    parser.add_argument("--teacher", metavar="RUN", help="coco18: a trained network to learn from")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 5, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, help="data.workers (default: the recipe's)")
    parser.add_argument("--timing-only", action="store_true", help="write seconds.json, then stop")
    parser.add_argument("--out", default="runs/budget")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    if args.source != "scenes" and not args.data:
        parser.error(f"{args.source} needs --data")
    logging.basicConfig(level=logging.WARNING)
    chosen = [arm for arm in arms(args) if arm.name in (args.arms or [arm.name])]
    seconds = {arm.name: epoch_seconds(args, arm) for arm in chosen}
    if args.timing_only:
        return
    rows = [
        measure(args, arm, seconds[arm.name], minutes, seed)
        for minutes in args.minutes
        for seed in args.seeds
        for arm in chosen
    ]
    for line in table(rows):
        print(line)
    figures = {"about": about(threads=args.threads), "rows": rows}
    write_figures(str(Path(args.out) / f"{args.source}.json"), figures)
    if args.plot:
        draw(rows, args.source, args.plot)


def epoch_seconds(args: argparse.Namespace, arm: Arm) -> float:
    """Return how long an epoch takes; timed once."""
    kept = Path(args.out) / args.source / "seconds.json"
    found: dict[str, float] = json.loads(kept.read_text()) if kept.is_file() else {}
    if arm.name not in found:
        out = folder(args, arm, "timing")
        whole = ["--train.min_size", "0"]
        run(args, arm, out, 100, 0, "--train.stop_epoch", str(TIMED_EPOCHS), *whole)
        log = RunFolder(out).read_log()
        # Validation at the end of the last epoch is in the time of the run, but not in its rate.
        images = json.loads((out / "metrics.json").read_text())["images_in_splits"]["train"]
        found[arm.name] = images / fmean(row["images_per_s"] for row in log[1:])
        write_figures(str(kept), found)
    print(f"{arm.name}: {found[arm.name]:.2f} s an epoch", flush=True)
    return found[arm.name]


def measure(
    args: argparse.Namespace, arm: Arm, seconds: float, minutes: float, seed: int
) -> dict[str, Any]:
    """Train with one budget; return the test figures that matter.

    `seconds` is what an epoch of images of full size takes; where they grow, more epochs fit.
    """
    config = load_recipe(find_recipe(arm.recipe), arm.options)
    work = Growth(config.train.min_size, image_side(config)).mean_work()
    epochs = max(1, int(60 * minutes / (seconds * work)))
    out = folder(args, arm, f"{minutes:g}-{seed}")
    run(args, arm, out, epochs, seed)
    figures = json.loads((out / "metrics.json").read_text())
    row = {"model": arm.name, "minutes": minutes, "seed": seed, "epochs": epochs}
    row["map"] = 100 * figures["map"]
    print(*(f"{key}: {value}" for key, value in row.items()), sep=", ", flush=True)
    return row


def folder(args: argparse.Namespace, arm: Arm, name: str) -> Path:
    return Path(args.out) / args.source / arm.name.replace(" ", "_") / name


def run(args: argparse.Namespace, arm: Arm, out: Path, epochs: int, seed: int, *more: str) -> None:
    """Train unless that is done."""
    if (out / "metrics.json").is_file():
        return
    options = [*arm.options, "--train.seed", str(seed), "--train.epochs", str(epochs)]
    options += ["--train.eval_every", str(epochs), "--train.threads", str(args.threads), *more]
    if args.workers is not None:
        options += ["--data.workers", str(args.workers)]
    config = load_recipe(find_recipe(arm.recipe), options)
    train(config, open_run(out, config, resume=False, overwrite=True), quiet=True)


def by_budget(rows: list[dict[str, Any]]) -> dict[str, dict[float, list[float]]]:
    """Return the figures of all seeds for each network and number of minutes."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        found.setdefault(row["model"], {}).setdefault(row["minutes"], []).append(row["map"])
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table: a line a network, mean and range over the seeds."""
    budgets = sorted({row["minutes"] for row in rows})
    lines = ["| test map after | " + " | ".join(f"{b:g} min" for b in budgets) + " |"]
    lines.append("|" + " --- |" * (len(budgets) + 1))
    for model, found in by_budget(rows).items():
        cells = [f"{fmean(v):.2f} ({min(v):.2f} to {max(v):.2f})" for _, v in sorted(found.items())]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def draw(rows: list[dict[str, Any]], source: str, path: str) -> None:
    """Plot mean and range against minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for model, found in by_budget(rows).items():
        minutes = sorted(found)
        means = [fmean(found[m]) for m in minutes]
        spans = [[mean - min(found[m]) for m, mean in zip(minutes, means, strict=True)]]
        spans += [[max(found[m]) - mean for m, mean in zip(minutes, means, strict=True)]]
        axes.errorbar(minutes, means, yerr=spans, marker="o", capsize=3, label=model)
    axes.set(xlabel="minutes of training", ylabel="test map (%)", title=source)
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
