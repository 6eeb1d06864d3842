"""Throughput and share of peak on a GPU in bf16: each variant beside timm's Swin of its size.

    python benchmarks/gpu.py --out runs/gpu.json

Times inference and training steps of each pair alternately, eager and compiled, then prints the
longest kernels of MlTr's least efficient case. The peak is that of a large matrix product on the
same GPU, measured in the same process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from timing import about, alternate, multiply_adds
from torch import Tensor, nn

from mltr.files.writing import write_figures
from mltr.network.model import create_model, default_image_size

PAIRS = {
    "mltr_s": "timm/swin_tiny_patch4_window7_224",
    "mltr_m": "timm/swin_small_patch4_window7_224",
    "mltr_l": "timm/swin_base_patch4_window7_224",
    "mltr_xl": "timm/swin_large_patch4_window7_224",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*PAIRS], choices=PAIRS)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-compile", action="store_true", help="only eager mode")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py needs an NVIDIA GPU, and torch finds none here", file=sys.stderr)
        return 1
    gpu = torch.cuda.get_device_name()
    figures: dict[str, Any] = {"about": about(gpu=gpu, cuda=torch.version.cuda), "rows": []}
    figures["peak_tflops"] = peak_tflops()
    print(f"{gpu}: {figures['peak_tflops']:.0f} TFLOP/s in a large bf16 product")
    for name, peer in PAIRS.items():
        if name in args.models:
            for mode in ("inference", "training"):
                for compiled in (False,) if args.no_compile else (False, True):
                    figures["rows"] += compare(name, peer, mode, compiled, args, figures)
    slowest = min(
        (row for row in figures["rows"] if row["model"] in PAIRS), key=lambda row: row["share"]
    )
    figures["profile"] = profile(slowest, args.batch_size)
    if args.out:
        write_figures(args.out, figures)
    return 0


def peak_tflops(n: int = 8192) -> float:
    left, right = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    (seconds,) = alternate([waiting(lambda: left @ right)], 10)
    return 2 * n**3 / median(seconds) / 1e12


def waiting(job: Callable[[], Any]) -> Callable[[], None]:
    """Return the job followed by a synchronisation of the GPU."""

    def run() -> None:
        job()
        torch.cuda.synchronize()

    return run


def compare(
    name: str, peer: str, mode: str, compiled: bool, args: argparse.Namespace, figures: Any
) -> list[dict[str, Any]]:
    """Time a variant and its peer alternately, at the variant's image size."""
    side = default_image_size(name)
    jobs = [waiting(make_job(n, side, mode, compiled, args.batch_size)) for n in (name, peer)]
    rows = []
    for own, seconds in zip((name, peer), alternate(jobs, args.rounds), strict=True):
        count = multiply_adds(own, side, image_size=side)
        speed = args.batch_size / median(seconds)
        work = 2e9 * count * (3 if mode == "training" else 1)
        row = {
            "model": own, "side": side, "mode": mode, "compiled": compiled, "images_per_s": speed,
            "multiply_adds_1e9": count, "share": speed * work / 1e12 / figures["peak_tflops"],
            "low": args.batch_size / max(seconds), "high": args.batch_size / min(seconds),
        }  # fmt: skip
        print(
            f"{mode:<9} compiled {compiled!s:<5} {own:<36} {side} px {speed:8.0f} img/s "
            f"({row['low']:.0f}..{row['high']:.0f})  {row['share']:.0%} of peak",
            flush=True,
        )
        rows.append(row)
    torch.cuda.empty_cache()
    return rows


def make_job(
    name: str, side: int, mode: str, compiled: bool, batch_size: int
) -> Callable[[], None]:
    model = create_model(name, image_size=side).cuda()
    images = torch.randn(batch_size, 3, side, side, device="cuda")
    forward = torch.compile(model) if compiled else model
    if mode == "training":
        return lambda: training(model.train(), forward, images)
    model.eval()
    return lambda: infer(forward, images)


@torch.inference_mode()
def infer(forward: nn.Module, images: Tensor) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        forward(images)


def training(model: nn.Module, forward: nn.Module, images: Tensor) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        loss = forward(images).square().mean()
    loss.backward()
    model.zero_grad()


def profile(row: dict[str, Any], batch_size: int) -> list[dict[str, Any]]:
    """Print the kernels that take longest in a case."""
    job = waiting(make_job(row["model"], row["side"], row["mode"], row["compiled"], batch_size))
    for _ in range(3):
        job()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        job()
    kernels = sorted(seen.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)
    print(f"\nfurthest from the peak: {row['mode']} of {row['model']}, compiled {row['compiled']}")
    found = [
        {"kernel": event.key, "share": event.self_device_time_total / total, "calls": event.count}
        for event in kernels[:15]
    ]
    for kernel in found:
        print(f"{kernel['share']:6.1%}  {kernel['calls']:5} calls  {kernel['kernel'][:90]}")
    return found


if __name__ == "__main__":
    sys.exit(main())
