"""Images per second of MlTr and its peers, beside timm's Swin-T, in one process.

    python benchmarks/network.py --out runs/network.json
    python benchmarks/network.py --all --out runs/peers.json

Each round times the model and then the reference, so that noise affects both. Efficiency is the
ratio of images/s times multiply-adds (1.0: that of Swin-T), given as the median and range over the
rounds. Multiply-adds of one image are counted in the same way for all networks. As in `mltr train`,
the C library keeps freed memory; otherwise the second network would reuse the memory of the first,
which has to get its own from the system. `compiled` is float32 inference of both with
torch.compile, and `packaged` bf16 inference with frozen weights, compiled ahead of time, which
takes half a minute for each; both with the model's speed-up over eager mode in the same rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timing import (
    REFERENCE,
    SIDE,
    about,
    alternate,
    inference,
    multiply_adds,
    spread,
    training_step,
)
from torch import Tensor, nn

from mltr.files.writing import write_figures
from mltr.machine.memory import keep_freed_memory
from mltr.network.model import create_model

PEERS = (
    "mltr_s",
    "cat_t",
    "timm/swin_small_patch4_window7_224",
    "timm/swin_base_patch4_window7_224",
    "timm/resnet50",
    "timm/resnet101",
    "timm/tresnet_m",
    "timm/tresnet_l",
    "timm/vit_small_patch16_224",
)
MODES = ("fp32", "bf16", "train", "compiled", "packaged")
EAGER = {"compiled": "fp32", "packaged": "bf16"}  #: modes, and what they are compared with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["mltr_s"], help="MlTr variants or timm/NAME"
    )
    parser.add_argument("--all", action="store_true", help=f"all of {', '.join(PEERS)}")
    parser.add_argument("--modes", nargs="+", default=["fp32", "bf16", "train"], choices=MODES)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain-malloc", action="store_true", help="don't keep freed memory")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time instead of wall time")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = about(
        batch_size=args.batch_size, rounds=args.rounds, cpu_time=args.cpu_time,
        keeps_memory=not args.plain_malloc and keep_freed_memory(),
    )  # fmt: skip
    print(*(f"{key}: {value}" for key, value in machine.items()), sep=", ")
    rows = []
    for mode in args.modes:
        for name in PEERS if args.all else args.models:
            rows.append(compare(name, mode, args))
            print(line(rows[-1]), flush=True)
    if args.out:
        write_figures(args.out, {"about": machine, "rows": rows})


def compare(name: str, mode: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time a network and the reference alternately."""
    jobs = [make_job(name, mode, args.batch_size), make_job(REFERENCE, mode, args.batch_size)]
    if mode in EAGER:
        jobs.append(make_job(name, EAGER[mode], args.batch_size))
    clock = time.process_time if args.cpu_time else time.perf_counter
    own, reference, *eager = alternate(jobs, args.rounds, clock)
    counts = multiply_adds(name), multiply_adds(REFERENCE)
    ratios = [counts[0] / counts[1] * r / o for o, r in zip(own, reference, strict=True)]
    row = {
        "model": name, "mode": mode, "multiply_adds_1e9": counts[0],
        "images_per_s": args.batch_size / median(own),
        "reference_images_per_s": args.batch_size / median(reference),
        "efficiency": spread(ratios),
    }  # fmt: skip
    if eager:
        row["over_eager"] = spread([e / o for o, e in zip(own, eager[0], strict=True)])
    return row


def make_job(name: str, mode: str, batch_size: int) -> Callable[[], Any]:
    """Return a function that runs one inference or one training step."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=80)
    images = torch.randn(batch_size, 3, SIDE, SIDE)
    if mode == "train":
        return lambda: training_step(model.train(), images)
    dtype = torch.bfloat16 if mode in ("bf16", "packaged") else torch.float32
    model, images = model.eval().to(dtype), images.to(dtype)
    if mode == "packaged":
        forward: Any = package(model, images)
    else:
        forward = torch.compile(model) if mode == "compiled" else model
    return lambda: inference(forward, images)


@torch.no_grad()
def package(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a network compiled ahead of time: one C++ file in place of one for each kernel."""
    program = torch.export.export(model, (images,))
    began = time.perf_counter()
    with TemporaryDirectory() as folder, torch._inductor.config.patch(freezing=True):
        path = str(Path(folder) / "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        print(f"compiled in {time.perf_counter() - began:.0f} s")
        loaded: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(path)
    return loaded


def line(row: dict[str, Any]) -> str:
    ratio = row["efficiency"]
    text = (
        f"{row['mode']:<8} {row['model']:<38} {row['multiply_adds_1e9']:5.2f} G "
        f"{row['images_per_s']:7.1f} img/s (Swin-T {row['reference_images_per_s']:.1f})   "
        f"efficiency {ratio['median']:.2f} ({ratio['low']:.2f}..{ratio['high']:.2f})"
    )
    if "over_eager" in row:
        text += f"   over eager {row['over_eager']['median']:.2f}"
    return text


if __name__ == "__main__":
    main()
