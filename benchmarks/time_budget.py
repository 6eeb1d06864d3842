"""Test `map` by training time: mltr_nano beside networks of similar cost, each from scratch.

    python benchmarks/time_budget.py miml --data MIML --out runs/budget --plot budget.png
    python benchmarks/time_budget.py scenes --models mltr_nano timm/resnet18 --minutes 2

All networks have the same trainer, recipe, images and seeds. First an epoch of each network is
timed once, which needs an otherwise idle machine. A budget in minutes is then the number of epochs
that fit, with the schedule over these and one validation at the end. The figures therefore don't
depend on other load during training. Repeat the command to continue; finished runs are kept.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from timing import about, multiply_adds

from mltr.config.recipe import find_recipe, load_recipe
from mltr.files.writing import write_figures
from mltr.runs.folder import RunFolder, open_run
from mltr.training.train import train

SIDES = {"miml": 96, "scenes": 64}
WARMUP = 0.07  #: share of the epochs for warm-up, as in the recipe for MIML
TIMED_EPOCHS = 3  #: epochs for timing, of which the first isn't counted


@dataclass(frozen=True)
class Peer:
    """A network by name, with the overrides for small pictures."""

    name: str
    overrides: dict[str, Any]


def peers(side: int) -> list[Peer]:
    window = {96: 6, 64: 4}[side]
    swin = {"embed_dim": 48, "num_heads": (2, 4, 8, 16), "window_size": window}
    return [
        Peer("mltr_nano", {}),
        Peer("timm/resnet18", {}),
        Peer("timm/swin_tiny_patch4_window7_224", swin),
        Peer("timm/vit_tiny_patch16_224", {"patch_size": 8, "depth": 4}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", choices=sorted(SIDES))
    parser.add_argument("--data", metavar="MIML", help="folder of the photos")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these networks")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 5, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="runs/budget")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    if args.source == "miml" and not args.data:
        parser.error("miml needs --data")
    logging.basicConfig(level=logging.WARNING)
    chosen = [p for p in peers(SIDES[args.source]) if p.name in (args.models or [p.name])]
    seconds = {peer.name: epoch_seconds(args, peer) for peer in chosen}
    rows = [
        measure(args, peer, seconds[peer.name], minutes, seed)
        for minutes in args.minutes
        for seed in args.seeds
        for peer in chosen
    ]
    for line in table(rows):
        print(line)
    figures = {"about": about(threads=args.threads), "rows": rows}
    write_figures(str(Path(args.out) / f"{args.source}.json"), figures)
    if args.plot:
        draw(rows, args.source, args.plot)


def epoch_seconds(args: argparse.Namespace, peer: Peer) -> float:
    """Return the time of an epoch of this network; timed once."""
    out = folder(args, peer, "timing")
    run(args, peer, out, 100, 0, "--train.stop_epoch", str(TIMED_EPOCHS))
    log = RunFolder(out).read_log()
    # The run's time includes validation after the last epoch; its rate doesn't.
    images = json.loads((out / "metrics.json").read_text())["images_in_splits"]["train"]
    seconds = images / fmean(row["images_per_s"] for row in log[1:])
    side = SIDES[args.source]
    cost = multiply_adds(peer.name, side, image_size=side, **peer.overrides)
    print(f"{peer.name}: {seconds:.2f} s an epoch, {1e3 * cost:.0f} M multiply-adds", flush=True)
    return seconds


def measure(
    args: argparse.Namespace, peer: Peer, seconds: float, minutes: float, seed: int
) -> dict[str, Any]:
    """Train with one budget; return the main test figures."""
    epochs = max(1, int(60 * minutes / seconds))
    out = folder(args, peer, f"{minutes:g}-{seed}")
    run(args, peer, out, epochs, seed)
    figures = json.loads((out / "metrics.json").read_text())
    row = {"model": peer.name, "minutes": minutes, "seed": seed, "epochs": epochs}
    row["map"] = 100 * figures["map"]
    print(*(f"{key}: {value}" for key, value in row.items()), sep=", ", flush=True)
    return row


def folder(args: argparse.Namespace, peer: Peer, name: str) -> Path:
    return Path(args.out) / args.source / peer.name.removeprefix("timm/") / name


def run(
    args: argparse.Namespace, peer: Peer, out: Path, epochs: int, seed: int, *more: str
) -> None:
    """Train unless the run is finished."""
    if (out / "metrics.json").is_file():
        return
    options = ["--model.name", peer.name, "--train.seed", str(seed), "--train.epochs", str(epochs)]
    options += ["--train.eval_every", str(epochs), "--train.warmup", f"{WARMUP:g}"]
    options += ["--train.threads", str(args.threads), *more]
    for key, value in peer.overrides.items():
        options += [f"--model.overrides.{key}", json.dumps(value)]
    if args.source == "miml":
        options += ["--data.root", args.data]
    config = load_recipe(find_recipe(f"{args.source}_nano"), options)
    train(config, open_run(out, config, resume=False, overwrite=True), quiet=True)


def by_budget(rows: list[dict[str, Any]]) -> dict[str, dict[float, list[float]]]:
    """Return the figures of all seeds for each network and number of minutes."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        found.setdefault(row["model"], {}).setdefault(row["minutes"], []).append(row["map"])
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table with a row per network: mean and range over the seeds."""
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

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for model, found in by_budget(rows).items():
        minutes = sorted(found)
        means = [fmean(found[m]) for m in minutes]
        spans = [[mean - min(found[m]) for m, mean in zip(minutes, means, strict=True)]]
        spans += [[max(found[m]) - mean for m, mean in zip(minutes, means, strict=True)]]
        axes.errorbar(minutes, means, yerr=spans, marker="o", capsize=3, label=model)
    axes.set(xlabel="minutes of training", ylabel="test map", title=source)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
