"""Growth of time and memory with the image size and the number of classes.

    python benchmarks/growth.py --out runs/growth.json --plot docs/growth.png

Times inference of `mltr_s` and Swin-T on one image of 224 to 1024 pixels, and each head alone with
20 to 10,000 classes on the map of one image. The exponent is the slope of a line fitted to the
logarithms (1: linear in the number of pixels or classes). Memory is that of training, by
`mltr.planning.workload`.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import REFERENCE, about, alternate, inference, training_memory

from mltr.files.writing import write_figures
from mltr.network.heads import HEADS, make_head
from mltr.network.model import create_model

SIDES = (224, 320, 448, 640, 896, 1024)
CLASSES = (20, 80, 300, 1000, 3000, 10_000)
PAIRS = 3000 * 3000  #: maximum pairs of queries in self-attention, as more take too long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time instead of wall time")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--plot", metavar="FILE", help="plot the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures: dict[str, Any] = {"about": about(rounds=args.rounds)}
    print(figures["about"])
    figures["sides"] = [by_side(name, args) for name in ("mltr_s", REFERENCE)]
    figures["classes"] = [by_classes(head, args) for head in HEADS]
    if args.out:
        write_figures(args.out, figures)
    if args.plot:
        draw(figures, args.plot)


def by_side(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time one image of each size; Swin is rebuilt for each, MlTr accepts all."""
    seconds, megabytes = [], []
    for side in SIDES:
        model = create_model(name, image_size=side).eval()
        images = torch.randn(1, 3, side, side)
        seconds.append(timed(lambda m=model, x=images: inference(m, x), args))
        megabytes.append(training_memory(name, side).per_image / 1e6)
    pixels = [side**2 for side in SIDES]
    per_pixel = [s / p / (seconds[0] / pixels[0]) for s, p in zip(seconds, pixels, strict=True)]
    row = {
        "model": name, "side": SIDES, "seconds": seconds, "training_mb": megabytes,
        "time_per_pixel_over_224": per_pixel, "time_exponent": exponent(pixels, seconds),
        "memory_exponent": exponent(pixels, megabytes),
    }  # fmt: skip
    print(f"{name}: time ~ pixels^{row['time_exponent']:.2f}, "
          f"memory ~ pixels^{row['memory_exponent']:.2f}")  # fmt: skip
    for side, second, ratio, mb in zip(SIDES, seconds, per_pixel, megabytes, strict=True):
        print(f"  {side:5} px  {1e3 * second:8.0f} ms  a pixel {ratio:.2f} of that at 224  "
              f"training {mb:7.0f} MB", flush=True)  # fmt: skip
    return row


def by_classes(head: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time a head on the final map of one image of 224 pixels."""
    maps = torch.randn(1, 7, 7, 768)
    counts, seconds, megabytes = [], [], []
    for num_classes in CLASSES:
        if head == "query2label" and num_classes**2 > PAIRS:
            continue
        module = make_head(head, 768, num_classes).eval()
        counts.append(num_classes)
        seconds.append(timed(lambda m=module: inference(m, maps), args))
        megabytes.append(sum(p.nbytes for p in module.parameters()) / 1e6)
    row = {
        "head": head, "classes": counts, "seconds": seconds, "weights_mb": megabytes,
        "time_exponent": exponent(counts, seconds),
        "last_exponent": exponent(counts[-2:], seconds[-2:]),
        "memory_exponent": exponent(counts, megabytes),
    }  # fmt: skip
    times = ", ".join(f"{n}: {1e3 * s:.1f}" for n, s in zip(counts, seconds, strict=True))
    print(f"{head}: time ~ classes^{row['time_exponent']:.2f} "
          f"(the last step {row['last_exponent']:.2f}), weights ~ "
          f"classes^{row['memory_exponent']:.2f}; ms: {times}", flush=True)  # fmt: skip
    return row


def timed(job: Any, args: argparse.Namespace) -> float:
    clock = time.process_time if args.cpu_time else time.perf_counter
    return median(alternate([job], args.rounds, clock)[0])


def exponent(sizes: list[int], values: list[float]) -> float:
    slope, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope)


def draw(figures: dict[str, Any], path: str) -> None:
    """Plot time against image size and number of classes on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for row in figures["sides"]:
        label = f"{row['model'].removeprefix('timm/')} (pixels^{row['time_exponent']:.2f})"
        left.plot(row["side"], row["seconds"], "o-", label=label)
    for row in figures["classes"]:
        label = f"{row['head']} (classes^{row['time_exponent']:.2f})"
        right.plot(row["classes"], [1e3 * s for s in row["seconds"]], "o-", label=label)
    left.set(xlabel="side of the image, pixels", ylabel="s per image", xscale="log", yscale="log")
    left.set_xticks(SIDES, [str(side) for side in SIDES], rotation=45)
    left.minorticks_off()
    marks = (0.1, 0.2, 0.5, 1, 2, 5)
    left.set_yticks(marks, [str(mark) for mark in marks])
    right.set(xlabel="classes", ylabel="head only, ms per image", xscale="log", yscale="log")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
