"""Images per second of MlTr and its peers, beside timm's Swin-T, in one process.

    python benchmarks/network.py --out runs/network.json

Each round times the reference and then the model, so that a busy moment hits both; the ratio of
each round is of images/s times multiply-adds (1.0: as efficient as Swin-T), and the median and
range over the rounds are printed. Multiply-adds are those of the plain networks at 224 pixels.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mltr.model import create_model
from mltr.runs import write_figures

REFERENCE = "timm/swin_tiny_patch4_window7_224"
#: Multiply-adds at 224 pixels, in 1e9: MlTr's counted by our tests, the peers' from their papers
#: and timm's table of results.
MULTIPLY_ADDS = {
    "mltr_s": 6.1,
    "cat_t": 2.8,
    REFERENCE: 4.5,
    "timm/swin_small_patch4_window7_224": 8.7,
    "timm/swin_base_patch4_window7_224": 15.4,
    "timm/resnet50": 4.1,
    "timm/resnet101": 7.8,
    "timm/tresnet_m": 5.7,
    "timm/tresnet_l": 10.9,
    "timm/vit_small_patch16_224": 4.6,
}
MODES = ("fp32", "bf16", "train")
SIDE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mltr_s"], choices=sorted(MULTIPLY_ADDS))
    parser.add_argument("--all", action="store_true", help="every network of the table")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", metavar="FILE", help="write the figures there as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = [name for name in MULTIPLY_ADDS if name != REFERENCE] if args.all else args.models
    about = {
        "date": str(date.today()), "machine": platform.machine(), "cores": os.cpu_count(),
        "threads": args.threads, "torch": torch.__version__, "timm": timm.__version__,
        "batch_size": args.batch_size, "reference": REFERENCE,
    }  # fmt: skip
    print(about)
    rows = []
    for mode in args.modes:
        reference = job(REFERENCE, mode, args.batch_size)
        for name in names:
            times = alternate(job(name, mode, args.batch_size), reference, args.rounds)
            rows.append({"model": name, "mode": mode} | summarise(name, times, args.batch_size))
            row = rows[-1]
            print(
                f"{mode:<6} {name:<38} {row['images_per_s']:7.1f} img/s   efficiency "
                f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f}..{row['ratio_range'][1]:.2f})",
                flush=True,
            )
    if args.out:
        write_figures(args.out, {"about": about, "rows": rows})


def job(name: str, mode: str, batch_size: int) -> Callable[[], Any]:
    """Return a function that does one inference or one training step."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=80)
    images = torch.randn(batch_size, 3, SIDE, SIDE)
    if mode == "train":
        return lambda: training_step(model.train(), images)
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    model, images = model.eval().to(dtype), images.to(dtype)
    return lambda: inference(model, images)


@torch.inference_mode()
def inference(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def training_step(model: nn.Module, images: Tensor) -> None:
    model(images).square().mean().backward()
    model.zero_grad()


def alternate(
    first: Callable[[], Any], second: Callable[[], Any], rounds: int
) -> list[tuple[float, float]]:
    """Time both in turns; the first round warms up."""
    times = []
    for _ in range(rounds + 1):
        pair = []
        for step in (first, second):
            began = time.perf_counter()
            step()
            pair.append(time.perf_counter() - began)
        times.append((pair[0], pair[1]))
    return times[1:]


def summarise(name: str, times: list[tuple[float, float]], batch_size: int) -> dict[str, Any]:
    share = MULTIPLY_ADDS[name] / MULTIPLY_ADDS[REFERENCE]
    ratios = [share * reference / own for own, reference in times]
    return {
        "images_per_s": batch_size / median(own for own, _ in times),
        "reference_images_per_s": batch_size / median(reference for _, reference in times),
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


if __name__ == "__main__":
    main()
