"""Time of the metrics of a whole data set, beside torchmetrics and scikit-learn.

    python benchmarks/metrics.py --out runs/metrics.json

All compute mAP of scores of COCO's size (40,504 x 80, about 3 labels per image) alternately. Then a
new process computes every metric of 100,000 x 9,605 scores (Open Images' classes). Prints its time,
and its peak memory including the inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from mltr.files.writing import write_figures
from mltr.metrics import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[40_504, 80], metavar=("N", "K"))
    parser.add_argument("--large", type=int, nargs=2, default=[100_000, 9_605], metavar=("N", "K"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_large:
        print(json.dumps(measure_large(*args.large)))
        return
    figures = {"about": about(), "side by side": compare(*args.shape, args.rounds)}
    words = [sys.executable, __file__, "--only-large", "--large", *map(str, args.large)]
    large = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    print(
        f"every metric of {args.large[0]:,} x {args.large[1]:,}: {large['seconds']:.1f} s, "
        f"{large['peak_gib']:.2f} GiB at most, of which {large['inputs_gib']:.2f} are the inputs"
    )
    figures["large"] = large
    if args.out:
        write_figures(args.out, figures)


def about() -> dict[str, Any]:
    import sklearn
    import torch
    import torchmetrics

    found = {
        "date": str(date.today()), "machine": platform.machine(), "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(), "numpy": np.__version__,
        "torchmetrics": torchmetrics.__version__, "scikit-learn": sklearn.__version__,
    }  # fmt: skip
    print(found)
    return found


def compose(N: int, K: int, labels: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return probs float32 and targets int8 [N, K] like those of a fairly good network."""
    rng = np.random.default_rng(0)
    probs = rng.random((N, K), dtype=np.float32)
    targets = np.zeros((N, K), np.int8)
    rows = max(1, 4_000_000 // K)
    for start in range(0, N, rows):  # in blocks, so that temporaries don't raise the peak memory
        block = slice(start, start + rows)
        targets[block] = rng.random(targets[block].shape, dtype=np.float32) < labels / K
        probs[block] **= np.where(targets[block] == 1, 0.3, 4).astype(np.float32)
    return probs, targets


def compare(N: int, K: int, rounds: int) -> dict[str, Any]:
    import torch
    from sklearn.metrics import average_precision_score
    from timing import alternate
    from torchmetrics.functional.classification import multilabel_average_precision

    probs, targets = compose(N, K)
    tensors = torch.from_numpy(probs), torch.from_numpy(targets).long()
    ways: dict[str, Callable[[], float]] = {
        "mltr: every metric": lambda: evaluate(probs, targets)["map"],
        "torchmetrics: map": lambda: float(multilabel_average_precision(*tensors, num_labels=K)),
        "scikit-learn: map": lambda: float(average_precision_score(targets, probs)),
    }
    values: dict[str, float] = {}

    def judge(name: str) -> None:
        values[name] = ways[name]()

    jobs = [partial(judge, name) for name in ways]
    seconds = dict(zip(ways, alternate(jobs, rounds), strict=True))
    found = {}
    for name, times in seconds.items():
        ratios = [t / own for t, own in zip(times, seconds["mltr: every metric"], strict=True)]
        found[name] = {
            "seconds": median(times), "range": [min(times), max(times)],
            "ratio": median(ratios), "ratio_range": [min(ratios), max(ratios)],
            "map": values[name],
        }  # fmt: skip
        print(
            f"{N:,} x {K}: {name:<20} {median(times):7.3f} s ({min(times):.3f}..{max(times):.3f})  "
            f"{median(ratios):5.1f} times ours   map {values[name]:.9f}",
            flush=True,
        )
    return found


def measure_large(N: int, K: int) -> dict[str, float]:
    probs, targets = compose(N, K)
    began = time.perf_counter()
    found = evaluate(probs, targets)
    return {
        "seconds": time.perf_counter() - began,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "inputs_gib": (probs.nbytes + targets.nbytes) / 2**30,
        "map": found["map"],
    }


if __name__ == "__main__":
    main()
