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
import logging
from pathlib import Path
from statistics import fmean

import torch
from few_labels import run, write_few
from timing import about

from mltr.files.writing import write_figures

EPOCHS = {100: 60, 300: 30}  #: by the number of labelled photos
OPTIONS = [
    "--model.image_size", "96", "--data.base_size", "128", "--train.batch_size", "32",
    "--train.eval_every", "10", "--train.min_size", "0",
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
        write_few(Path(args.data).resolve(), table, labels)
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
    own = ["--model.init", args.start, "--train.lr", args.lr] if arm == "start" else []
    images = str(Path(args.data).resolve() / "images")
    options = [
        *OPTIONS, *own, "--data.root", str(table), "--data.images", images,
        "--train.epochs", str(EPOCHS[labels]), "--train.seed", str(seed),
        "--train.threads", str(args.threads),
    ]  # fmt: skip
    return float(run("scratch", Path(args.out) / f"{labels}-{arm}-{seed}", options)["map"])


if __name__ == "__main__":
    main()
