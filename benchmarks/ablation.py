"""Ablation of the attentions: pixel only, cross-window only, and both, at equal parameters.

    python benchmarks/ablation.py scenes --out runs/ablation
    python benchmarks/ablation.py miml --data MIML --out runs/ablation

Trains mltr_nano with one or both kinds of blocks, with MLP widths chosen for an equal number of
parameters, and the same recipe, seeds and images. Intervals are Student's t over the seeds;
differences are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from scipy.stats import t as student_t

from mltr.config.recipe import find_recipe, load_recipe
from mltr.files.writing import write_figures
from mltr.network.model import create_model
from mltr.runs.folder import open_run
from mltr.training.train import train

KINDS = ("both", "pixel", "cross")
#: Shorter than the recipes, so that three seeds of three networks take minutes.
OPTIONS = {
    "scenes": ["--data.scenes.train", "4000", "--train.epochs", "8"],
    "miml": ["--train.epochs", "25"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", choices=sorted(OPTIONS))
    parser.add_argument("--data", metavar="MIML", help="folder of the photos")
    parser.add_argument("--out", default="runs/ablation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.source == "miml" and not args.data:
        parser.error("miml needs --data")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ratios = equal_ratios()
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in args.seeds:
        for kind in KINDS:
            out = Path(args.out) / f"{args.source}-{kind}-{seed}"
            found[kind].append(run(args, out, kind, ratios[kind], seed))
            print(f"{args.source} {kind} seed {seed}: {100 * found[kind][-1]:.2f}", flush=True)
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}, seeds {args.seeds}")
    for kind in KINDS:
        count = parameters(kind, ratios[kind])
        print(f"{kind:<6} {count / 1e6:.3f} M parameters  test map {interval(found[kind])}")
    for kind in KINDS[1:]:
        differences = [a - b for a, b in zip(found["both"], found[kind], strict=True)]
        print(f"both - {kind:<6} {interval(differences)}")
    figures = {"maps": found, "mlp_ratios": ratios, "seeds": args.seeds}
    write_figures(str(Path(args.out) / f"ablation_{args.source}.json"), figures)


def equal_ratios() -> dict[str, float]:
    """Return the MLP ratio of each kind at which it has as many parameters as `both`."""
    ratios = {"both": 4.0}
    wanted = parameters("both", 4.0)
    for kind in KINDS[1:]:
        slope = parameters(kind, 5.0) - parameters(kind, 4.0)
        ratios[kind] = round(4 + (wanted - parameters(kind, 4.0)) / slope, 3)
    return ratios


def parameters(kind: str, mlp_ratio: float) -> int:
    with torch.device("meta"):
        model = create_model("mltr_nano", 10, attention=kind, mlp_ratio=mlp_ratio)
    return sum(p.numel() for p in model.parameters())


def run(args: argparse.Namespace, out: Path, kind: str, ratio: float, seed: int) -> float:
    """Train one network; return its test map. A finished run is not repeated."""
    if not (out / "metrics.json").is_file():
        options = [*OPTIONS[args.source], "--train.seed", str(seed)]
        options += ["--model.overrides.attention", kind, "--model.overrides.mlp_ratio", str(ratio)]
        options += ["--train.threads", str(args.threads)]
        if args.source == "miml":
            options += ["--data.root", args.data]
        config = load_recipe(find_recipe(f"{args.source}_nano"), options)
        train(config, open_run(out, config, resume=False, overwrite=True), quiet=True)
    figures: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return float(figures["map"])


def interval(values: list[float]) -> str:
    """Return the mean with its 95% interval, in percentage points."""
    mean = 100 * fmean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    half = 100 * stdev(values) / math.sqrt(len(values)) * student_t.ppf(0.975, len(values) - 1)
    return f"{mean:.2f} ± {half:.2f}"


if __name__ == "__main__":
    main()
